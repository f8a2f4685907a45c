"""What a trained network is worth: embedding quality, probes, per-class accuracy."""
