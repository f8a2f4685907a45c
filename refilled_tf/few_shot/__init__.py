"""Few-shot learning: tasks of a few images a class, and what adapts to them."""

from refilled_tf import import_tensorflow

import_tensorflow()
