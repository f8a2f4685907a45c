"""A training on scikit-learn's digits that the tests of exports start from."""

from pathlib import Path

from refilled_tf.experiment import config

ROOT = Path(__file__).resolve().parents[2]

# The quickstart with more images; its includes in full, as any package of a name such as "data"
# on the path of a process hides gin's folders.
GIN = f"""
include '{ROOT}/gin/data/digits.gin'
include '{ROOT}/gin/models/mobilenet.gin'
include '{ROOT}/gin/methods/cross_task.gin'
teacher/MobileNet.width = 0.25
MobileNet.stem_stride = 1
student.images_per_class = 50
Recipe.epochs = 6
Recipe.batch_size = 25
"""


def experiment(folder, *params):
    """Loads the experiment with single settings over it."""
    path = folder / "digits.gin"
    path.write_text(GIN)
    return config.load_experiment([path], params)
