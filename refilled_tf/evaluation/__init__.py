"""Evaluation of trained networks: embedding quality, probes, paired comparison."""

from refilled_tf import import_tensorflow

import_tensorflow()
