"""What a trained network is worth: embedding quality, probes, comparison with another."""
