"""Keras models with the custom train step, and the objectives they minimise."""
