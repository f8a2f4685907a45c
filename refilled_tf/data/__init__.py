"""Images and labels: sources, class and instance splits, batches."""
