"""From a finished training to what serves it."""

import refilled_tf  # noqa: F401  before TensorFlow, which it sets up

MODEL_NAME = "refilled"  # in a server's addresses: /v1/models/refilled
PREFERRED = "refilled"  # the stage to export where none is named
QUANTIZATIONS = {
    "none": "float32 weights",
    "float16": "float16 weights",
    "dynamic": "int8 weights, computed with in float32",
    "int8": "integers alone",
}
WARMUP = "assets.extra/tf_serving_warmup_requests"  # of a version, for the server itself
