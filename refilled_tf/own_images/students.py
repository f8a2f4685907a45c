"""Students as a command line names them: --student=MobileNetV2 --student_weights=FILE.keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from etils import epy

from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    from refilled_tf.models import efficientnet_lite, from_weights, mobilenet, networks

IMAGENET = "imagenet"  # weights that Keras downloads
# Each is a class of this name, in this file.
NETWORKS = {
    "MobileNet": mobilenet,
    "MobileNetV2": mobilenet,
    "MobileNetV3Small": mobilenet,
    "EfficientNetLite0": efficientnet_lite,
}

Network: TypeAlias = (
    "mobilenet.MobileNet | mobilenet.MobileNetV2 | mobilenet.MobileNetV3Small "
    "| efficientnet_lite.EfficientNetLite0"
)
Student: TypeAlias = "Network | from_weights.FromWeights"


def parse(name: str, width: float, weights: str | None = None) -> Student:
    """Turns a --student into what a gin file's Stage.backbone would hold.

    Args:
        name: one of `NETWORKS`.
        width: --width, the width multiplier.
        weights: --student_weights, see `FromWeights`; None for random ones.

    Returns:
        The student.

    Raises:
        InputError: there is no such network, width or file.
    """
    require_known(name, weights)
    kind = _kind(name)
    options: dict[str, Any] = {kind.size_option: width}
    try:
        network = kind(**options)
    except InputError as error:
        raise InputError(f"--width={width}: {error}") from error
    return network if weights is None else from_weights.FromWeights(network, weights)


def require_known(name: str, weights: str | None) -> None:
    """Rejects a --student that is none of `NETWORKS`, and --student_weights that are not there."""
    require(
        name in NETWORKS, f"--student={name} is none of what is accepted: {', '.join(NETWORKS)}"
    )
    require(
        weights in (None, IMAGENET) or Path(weights).expanduser().exists(),
        f"--student_weights={weights} does not exist; give {IMAGENET} or a file",
    )


def width_option(name: str) -> str:
    """Returns the width multiplier's name in gin."""
    return f"student/{name}.{_kind(name).size_option}"


def _kind(name: str) -> type[Network]:
    """Returns the class of one of `NETWORKS`."""
    return getattr(NETWORKS[name], name)


def described(backbone: networks.Backbone | networks.Lookup) -> str:
    """Returns such as "MobileNetV2 of width 0.35", of any network."""
    if isinstance(backbone, from_weights.FromWeights):
        return f"{described(backbone.network)}, pretrained,"
    width = getattr(backbone, "width", None)
    return type(backbone).__name__ + ("" if width is None else f" of width {width}")


def gin_lines(student: Student) -> list[str]:
    """Returns gin lines that make this the network of all rows but a teacher's.

    Args:
        student: what `parse` gave.

    Returns:
        Lines such as "Stage.backbone = @student/MobileNetV2()".
    """
    network = student.network if isinstance(student, from_weights.FromWeights) else student
    kind = type(network).__name__
    width = f"{width_option(kind)} = {getattr(network, _kind(kind).size_option)}"
    if not isinstance(student, from_weights.FromWeights):
        return [f"Stage.backbone = @student/{kind}()", width]
    return [
        "Stage.backbone = @student/FromWeights()",
        f"student/FromWeights.network = @student/{kind}()",
        f"student/FromWeights.weights = {student.weights!r}",
        width,
        "student_kx/Stage.method = 'Pretrained, fine-tuned'",
        "probe/Stage.method = 'Pretrained, distilled'",
        "probe_pool/Stage.method = 'Pretrained, distilled + pool'",
    ]
