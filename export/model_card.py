"""The model card of an export, in Markdown."""

from __future__ import annotations

import time
from importlib import metadata

import tensorflow as tf

from export import MODEL_NAME
from export.signatures import VOCABULARY, Functions
from export.trained import Trained
from refilled_tf.common import stack
from refilled_tf.experiment.stage import Stage

PACKAGES = ("tensorflow-datasets", "tensorflow-serving-api")  # beside those of stack.versions

# The letters of export/signatures.py.
SUPPORT_SIZES = {
    "support_bytes": "N",
    "support_labels": "N",
    "query_bytes": "Q",
    "classes": "Qk",
    "scores": "Qk",
}

CARD = """\
# {method}: {classes} classes

Made on {date} from the stage `{stage}`.

| | |
|---|---|
| Accuracy | {accuracy:.2f} % on {images} {scored_on} images |
| Data | `{source}` |
| Training images | {training_images}{per_class} |
| Network | {network}, {size}×{size} pixels, {parameters:,} trainable parameters |
| Teacher | {teacher} |
| Started from | {start} |
| Largest difference from the Keras network | {difference:.1e}, over all signatures |

It knows the classes below and no others: an image of anything else gets one of their names too.
{box}
## How to call it

| Signature | Input | Outputs |
|---|---|---|
{signatures}

- `classes` are the names of the most probable classes, best first, `scores` their probabilities;
  `probabilities` are those of all classes in the order of `assets/{vocabulary}`; `embedding` has
  length 1.
- `image_bytes` are upright JPEG or PNG files (EXIF does not turn them) of up to 33 megapixels;
  `examples` and `inputs` are serialized `tf.Example`s with such a file as their feature
  `image/encoded`; `images` are in [0, 255].
- Files are resized to {load_size}×{load_size} whatever their proportions, and the centre of
  {size}×{size} is taken: the same as when the accuracy above was measured.
- `classify` answers TF Serving's Classify calls, the other signatures Predict calls.
- `serving_support` answers with other classes than those below, which it learns from its request:
  `support_bytes` are images, `support_labels` their classes' names. Each of `query_bytes` gets the
  classes with the nearest mean embedding, nearest first, at most 5 of them; `scores` are the
  softmax of minus the squared distances, over all classes. By REST, send columns (`inputs`), as
  rows (`instances`) have one query for every image of the support; and do not let a server join
  its requests into batches, which would mix the classes of several callers.

With a server on this machine:

    {{ printf '{{"signature_name": "serving_bytes", "instances": [{{"b64": "'
      base64 < image.jpg | tr -d '\\n'
      printf '"}}]}}'; }} | curl -d @- http://localhost:8501/v1/models/{model}:predict

## Classes

{names}

## Settings

    {config}

## Packages

{packages}
"""

BOX = """
In its data, images were cropped to the box in `{box}` before all else. A served model knows no
boxes: send images that the object fills.
"""


def text(trained: Trained, functions: Functions, difference: float) -> str:
    """Writes the card.

    Args:
        trained: what was exported.
        functions: behind its signatures.
        difference: the largest between the export's answers and the network's.

    Returns:
        Markdown.
    """
    stage, data = trained.stage, trained.data
    options = stage.task.data
    teachers, limit = _teachers(stage), stage.task.images_per_class
    box = getattr(options.source, "box", None)
    packages = stack.versions() | {name: metadata.version(name) for name in PACKAGES}
    return CARD.format(
        method=stage.method,
        classes=len(data.class_names),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        stage=stage.name,
        network=stage.backbone,
        size=options.image_size,
        load_size=options.load_size,
        parameters=trained.result["parameters"]["trainable"],
        accuracy=100 * trained.result["accuracy"],
        images=trained.result["images"],
        scored_on=trained.result["scored_on"],
        teacher=", ".join(map(_described, teachers)) or "none: it learnt from labels alone",
        start=_described(stage.start) if stage.start else "random weights",
        source=options.source,
        training_images=len(data.train.labels),
        per_class=f", {limit} of every class" if limit else "",
        difference=difference,
        box=BOX.format(box=box) if box else "",
        signatures="\n".join(_signature_row(name, f) for name, f in functions.items()),
        vocabulary=VOCABULARY,
        model=MODEL_NAME,
        names="\n".join(f"{i}. {name}" for i, name in enumerate(data.class_names)),
        config=trained.config.strip().replace("\n", "\n    "),
        packages="\n".join(f"- {name} {number}" for name, number in packages.items()),
    )


def _teachers(stage: Stage) -> tuple[Stage, ...]:
    """Returns who taught the stage, or the one that it started from."""
    return stage.teachers or (_teachers(stage.start) if stage.start else ())


def _described(stage: Stage) -> str:
    classes = f" on the {stage.task.role}'s classes" if stage.objective.trains else ", as it came"
    return f"`{stage.name}` ({stage.method}), a {stage.backbone}{classes}"


def _signature_row(name: str, function: tf.types.experimental.ConcreteFunction) -> str:
    specs, _ = function.structured_input_signature
    columns = ({spec.name: spec for spec in specs}, function.structured_outputs)
    sizes = SUPPORT_SIZES if name == "serving_support" else {}
    cells = (_tensors(column, sizes) for column in columns)
    return " | ".join([f"| `{name}`", *cells]) + " |"


def _tensors(specs: dict[str, tf.TensorSpec], sizes: dict[str, str]) -> str:
    """Returns such as `images` float32 [B, 32, 32, 3].

    Args:
        specs: of tensors by name.
        sizes: by name the letters of the sizes that are open; a B where there is none.
    """
    shapes = {}
    for name, spec in specs.items():
        letters = iter(sizes.get(name, "B"))
        shapes[name] = ", ".join(str(size or next(letters)) for size in spec.shape)
    return "<br>".join(f"`{n}` {specs[n].dtype.name} [{shape}]" for n, shape in shapes.items())
