"""Networks: images to embeddings, and the classifier on top."""
