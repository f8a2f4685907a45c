"""Evaluation of trained networks: embedding quality, probes, paired comparison."""
