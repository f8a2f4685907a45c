"""From a finished training to what serves it."""

MODEL_NAME = "refilled"  # in a server's addresses: /v1/models/refilled
