"""Keras models with the custom train step, and the objectives they minimise."""

from refilled_tf import import_tensorflow

import_tensorflow()
