"""Networks: images to embeddings, and the classifier on top."""

from refilled_tf import import_tensorflow

import_tensorflow()
