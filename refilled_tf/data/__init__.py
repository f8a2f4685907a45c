"""Images and labels: sources, class and instance splits, batches."""

from refilled_tf import import_tensorflow

import_tensorflow()
