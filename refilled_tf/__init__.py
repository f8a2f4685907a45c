"""Distil a cross-task teacher into a small, deployable network (REFILLED, CVPR 2020).

It sets up TensorFlow, with Keras 2 as tf.keras, for when that is imported. A program that uses
TensorFlow itself imports this package first.
"""

import importlib.util
import os
import re
import sys
import tempfile
import warnings

# TensorFlow's C++ start-up notices (missing GPU libraries, plug-ins registered twice) tell a
# person nothing. They can only be silenced before TensorFlow is imported; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow takes oneDNN's convolutions by itself on some CPUs only. Without them a depthwise
# convolution's gradient keeps one core busy, and a MobileNet trains at half the speed.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# TensorFlow Addons announces its end of life at every import. It is pinned on purpose.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons \(TFA\) has ended")

# Such as "I0000 00:00:1796011358.422436    4270 port.cc:153] oneDNN custom operations are on."
_NOTICE = re.compile(rb"^(WARNING: All log messages before absl::|[IWE]\d{4} \d\d:).*\n", re.M)


def import_tensorflow() -> None:
    """Imports TensorFlow without the notices of its start-up, as far as they can be told.

    The rooms that need it do so first. A command's options are checked before, as it takes seconds.

    TensorFlow 2.21 prints some before it looks at TF_CPP_MIN_LOG_LEVEL. So stderr goes to a
    file until it is imported. What is no notice is then shown, and all of it if the import fails.
    If it kills the process, TF_CPP_MIN_LOG_LEVEL=0 lets see what it had to say.

    Raises:
        ImportError: another program's import of it has made Keras 3 tf.keras.
    """
    if "tensorflow" not in sys.modules:
        _import_quietly()
    # Only Keras 3 says its version here.
    keras = getattr(sys.modules["tensorflow"].keras, "__version__", None)
    if keras is not None:
        raise ImportError(
            f"refilled_tf needs Keras 2, but tf.keras is Keras {keras}: import refilled_tf before "
            "tensorflow (or set TF_USE_LEGACY_KERAS=1), and have the package tf-keras installed"
        )


def _import_quietly() -> None:
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or sys.__stderr__ is None:
        importlib.import_module("tensorflow")
        return
    stderr, notice = os.dup(2), None
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
            notice = _NOTICE
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            written = file.read()
            os.write(2, notice.sub(b"", written) if notice else written)


if "tensorflow" in sys.modules:
    import_tensorflow()  # which refuses it if it came with Keras 3
else:
    # Says which Keras is tf.keras, from TensorFlow 2.16 on; where there is no other, it must not.
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    if importlib.util.find_spec("tf_keras") is not None:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
