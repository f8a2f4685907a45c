r"""Memory and size of MobileNets in int8 on tflite-micro, beside MLPerf Tiny's reference network.

    python -m benchmarks.microcontroller
    python -m benchmarks.microcontroller --widths=.25 --sizes=96 --grey

One row for each width and size of images: a network of two classes as `export.microcontroller`
would write it. Neither memory nor size depends on what it has learnt, so it learns nothing; the
statistics of its batch norm are those of random images, lest its activations vanish.
"""

from __future__ import annotations

from absl import flags
from etils import epy

from refilled_tf.common.entry import run_main

with epy.lazy_imports():
    import tensorflow as tf

    from export import micro_model, micro_targets
    from refilled_tf.models import cost, mobilenet, networks

FLAGS = flags.FLAGS

# MobileNet v1 of width .25 on 96×96 pixels in colour, for two classes. Not measured here: the
# length of the file is that in https://github.com/mlcommons/tiny (vww_model_data.cc), the arena
# what tflite-micro on a PC was said to take for it. It calculates what the same network does here.
REFERENCE = [".25, MLPerf Tiny", "96", "103,680", "333,288", "7.49", "the six"]
SIX = {
    *("AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D"),
    *("FULLY_CONNECTED", "RESHAPE", "SOFTMAX"),
}
HEADER = ["width", "pixels", "arena, bytes", "file, bytes", "million MACs", "operators"]


def measure(width: float, size: int, grey: bool) -> list[str]:
    """Returns a network's row of the table."""
    tf.keras.utils.set_random_seed(0)
    network = networks.classifier(mobilenet.MobileNet(width=width), size, 2)
    model = micro_targets.quantized(network, grey)
    return row(
        width,
        size,
        micro_model.arena_bytes(model),
        len(model),
        cost.cost_of(micro_model.rewritten(network, grey).network).multiplications,
        micro_model.operators(model),
    )


def row(
    width: float, size: int, arena: int, file: int, multiplications: int, operators: dict[str, int]
) -> list[str]:
    """Returns the cells of a row."""
    others = sorted(operators.keys() - SIX)
    return [
        f"{width:g}".removeprefix("0"),
        str(size),
        f"{arena:,}",
        f"{file:,}",
        f"{multiplications / 1e6:.2f}",
        ", ".join(["of the six", *others]),
    ]


def main(_: list[str]) -> None:
    """Prints the table."""
    print(f"| {' | '.join(HEADER)} |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for width in FLAGS.widths:
        for size in FLAGS.sizes:
            cells = measure(float(width), int(size), FLAGS.grey)
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"| {' | '.join(REFERENCE)} |")


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_list("widths", [".1", ".25", ".5"], "Width multipliers.")
    flags.DEFINE_list("sizes", ["48", "64", "96"], "Sides of the images in pixels.")
    flags.DEFINE_bool("grey", False, "Whether images have one channel.")
    run_main(main)
