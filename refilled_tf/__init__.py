"""Distil a cross-task teacher into a small, deployable network (REFILLED, CVPR 2020)."""

import os
import warnings

# TensorFlow's C++ start-up notices (missing GPU libraries, plug-ins registered twice) tell a
# person nothing. They can only be silenced before TensorFlow is imported; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow takes oneDNN's convolutions by itself on some CPUs only. Without them a depthwise
# convolution's gradient keeps one core busy, and a MobileNet trains at half the speed.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# TensorFlow Addons announces its end of life at every import. It is pinned on purpose.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons \(TFA\) has ended")
