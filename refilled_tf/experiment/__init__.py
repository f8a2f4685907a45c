"""An experiment: its stages and rows, how they are trained, kept and scored."""

from refilled_tf import import_tensorflow

import_tensorflow()
