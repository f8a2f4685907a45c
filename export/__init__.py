"""From a finished training to what serves it."""

import refilled_tf  # noqa: F401  before TensorFlow, which it sets up

MODEL_NAME = "refilled"  # in a server's addresses: /v1/models/refilled
WARMUP = "assets.extra/tf_serving_warmup_requests"  # of a version, for the server itself
