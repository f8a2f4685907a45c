"""A folder for microcontrollers: a network, C++ that runs it, and what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tqdm import tqdm

from export import micro_model, tflite_files
from export.trained import Trained
from refilled_tf.common import storage
from refilled_tf.common.progress import bar_interval
from refilled_tf.models.cost import cost_of

ARENA_MARGIN = 0.1
PACKAGES = ("tensorflow", "tflite-micro")
_NUMBERS_PER_LINE = 16


def write(
    trained: Trained,
    output_dir: Path,
    image_size: int | None,
    grey: bool,
    command: str,
    instead: bool = False,
) -> dict[str, Any]:
    """Quantises a classifier, scores it by tflite-micro, and writes all that a device needs.

    Args:
        trained: what to convert.
        output_dir: a folder that is not there, or empty, or to be replaced.
        image_size: side of the images that the network sees; None for that of its training.
        grey: whether they have one channel.
        command: that does this.
        instead: whether to replace a folder that is there.

    Returns:
        The content of microcontroller.json.

    Raises:
        InputError: the network cannot be converted, or the folder not be written.
    """
    crop = trained.stage.task.data.image_size
    size = image_size or crop
    train, test = (
        micro_model.as_seen(part.images[:], crop, size, grey)
        for part in (trained.data.train, trained.data.test)
    )
    float_network = micro_model.rewritten(micro_model.at_size(trained.network, size), grey)
    model, calibration = micro_model.calibrated(
        float_network, train, micro_model.CALIBRATION_IMAGES
    )
    taken, given = micro_model.quantizations(model)
    labels = trained.data.test.labels
    wanted = micro_model.float_probabilities(float_network, test)
    with tqdm(
        total=len(test), unit="image", desc="tflite-micro", mininterval=bar_interval()
    ) as bar:
        scores = micro_model.micro_outputs(model, test, bar.update)
    found = given.scale * (scores.astype(np.float32) - given.zero_point)
    arena = micro_model.arena_bytes(model)
    results = tflite_files.facts(trained, command, PACKAGES) | {
        "image_size": size,
        "channels": test.shape[-1],
        "classes": len(trained.data.class_names),
        "bytes": len(model),
        "arena_bytes": arena,
        "arena_reserved_bytes": reserved(arena),
        "multiplications": cost_of(float_network.network).multiplications,
        "operators": micro_model.operators(model),
        "input": taken._asdict(),
        "output": given._asdict(),
        "calibration": [each._asdict() for each in calibration],
        "calibration_images": micro_model.best(calibration).images,
        "trained_size": crop,
        "trained_accuracy": trained.result["accuracy"],
        "float_accuracy": float(np.mean(wanted.argmax(axis=1) == labels)),
        "int8": tflite_files.compare(labels, wanted, found),
    }
    # A picture that it gets right shows more; there may be none.
    shown = int(np.argmax(found.argmax(axis=1) == labels))
    files = rendered(
        **results,
        model=model,
        class_names=trained.data.class_names,
        test_picture=test[shown].ravel(),
        test_class=int(labels[shown]),
        test_scores=scores[shown],
    )
    with storage.appearing(output_dir, instead) as temporary:
        for name, text in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (temporary / "model.tflite").write_bytes(model)
        storage.write_json(temporary / "microcontroller.json", results)
    return results


def reserved(arena: int) -> int:
    """Returns a measured arena with its margin, in whole kB of 1024 bytes."""
    return -(-int(arena * (1 + ARENA_MARGIN)) // 1024) * 1024


def loses_too_much(results: dict[str, Any]) -> bool:
    """Tells whether int8 gets more than a point fewer of the images right than float32."""
    return results["int8"]["lost_images"] > tflite_files.TOLERATED_LOSS * results["images"]


def rendered(**values: Any) -> dict[str, str]:
    """Fills in the templates.

    Args:
        values: what microcontroller.json holds, "model", "class_names" and of the test picture
            "test_picture", "test_class" and "test_scores".

    Returns:
        Texts by their path in the folder.
    """
    values |= {"adders": micro_model.OPERATORS, "lost": loses_too_much(values)}
    return {
        name: _TEMPLATES.get_template(name).render(values) for name in _TEMPLATES.list_templates()
    }


def c_string(text: str) -> str:
    """Returns text as a literal of C++ that holds its UTF-8 bytes, whatever they are.

    Octal escapes end after three digits, those in hexadecimal with what is no such digit; and of
    question marks, two and a further character may be a trigraph.
    """
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    escaped = (chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(escaped)}"'


def rows(numbers: Sequence[int]) -> str:
    """Returns integers as the lines of an array of C++."""
    lines = (
        ", ".join(str(number) for number in numbers[start : start + _NUMBERS_PER_LINE])
        for start in range(0, len(numbers), _NUMBERS_PER_LINE)
    )
    return "\n".join(f"    {line}," for line in lines)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates" / "microcontroller"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters |= {"c_string": c_string, "rows": rows}
