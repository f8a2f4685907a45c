"""Losses as pure functions on tensors, one file per idea.

No function here keeps state, knows of Keras models or reads a configuration. Every one
computes in float32 whatever dtype comes in, so that a mixed-precision network can be trained
with it, and none lets a gradient through to the teacher.
"""

from refilled_tf import import_tensorflow

import_tensorflow()
