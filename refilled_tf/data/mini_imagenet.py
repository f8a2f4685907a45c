"""miniImageNet as a dataset of TensorFlow Datasets, made of images that one has.

    python -m refilled_tf.prepare --dataset=mini_imagenet --manual_dir=DIR

MANUAL_DOWNLOAD_INSTRUCTIONS says what DIR holds. `tfds build` can take this file too, from outside
of the project, so nothing of the project is imported here.
"""

from __future__ import annotations

import csv

import tensorflow_datasets as tfds

# The WordNet ids of the 100 classes, whichever part they are in.
CLASSES = (
    *("n01532829", "n01558993", "n01704323", "n01749939", "n01770081"),
    *("n01843383", "n01855672", "n01910747", "n01930112", "n01981276"),
    *("n02074367", "n02089867", "n02091244", "n02091831", "n02099601"),
    *("n02101006", "n02105505", "n02108089", "n02108551", "n02108915"),
    *("n02110063", "n02110341", "n02111277", "n02113712", "n02114548"),
    *("n02116738", "n02120079", "n02129165", "n02138441", "n02165456"),
    *("n02174001", "n02219486", "n02443484", "n02457408", "n02606052"),
    *("n02687172", "n02747177", "n02795169", "n02823428", "n02871525"),
    *("n02950826", "n02966193", "n02971356", "n02981792", "n03017168"),
    *("n03047690", "n03062245", "n03075370", "n03127925", "n03146219"),
    *("n03207743", "n03220513", "n03272010", "n03337140", "n03347037"),
    *("n03400231", "n03417042", "n03476684", "n03527444", "n03535780"),
    *("n03544143", "n03584254", "n03676483", "n03770439", "n03773504"),
    *("n03775546", "n03838899", "n03854065", "n03888605", "n03908618"),
    *("n03924679", "n03980874", "n03998194", "n04067472", "n04146614"),
    *("n04149813", "n04243546", "n04251144", "n04258138", "n04275548"),
    *("n04296562", "n04389033", "n04418357", "n04435653", "n04443257"),
    *("n04509417", "n04515003", "n04522168", "n04596742", "n04604644"),
    *("n04612504", "n06794110", "n07584110", "n07613480", "n07697537"),
    *("n07747607", "n09246464", "n09256479", "n13054560", "n13133613"),
)
# A part has the same number everywhere: in the feature, and where gin files list superclasses.
PARTS = ("train", "val", "test")


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    """100 classes of ImageNet with 600 images each, in parts of 64, 16 and 20 classes."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The folder has to hold images/, the JPEG files all in one folder, and train.csv, val.csv and
    test.csv, the lists of Ravi and Larochelle, which begin with the line "filename,label"; a
    label is a WordNet id, such as n01532829.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="100 classes of ImageNet, no class in two of the parts that are the splits",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "part": tfds.features.ClassLabel(names=PARTS),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://openreview.net/forum?id=rJY0-Kcll",
            citation=(
                "Vinyals et al., Matching Networks for One Shot Learning, NeurIPS 2016; its parts: "
                "Ravi and Larochelle, Optimization as a Model for Few-Shot Learning, ICLR 2017"
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        """Checks all that is there before the first image is read.

        Raises:
            FileNotFoundError: a csv file, the folder of images or an image is missing.
            ValueError: a csv file is not what it should be, or a class is in two of them.
        """
        folder = dl_manager.manual_dir
        images = folder / "images"
        if not images.is_dir():
            raise FileNotFoundError(f"there is no folder {images}, which has to hold the images")
        present = {path.name for path in images.iterdir()}
        parts: dict[str, list[tuple[str, str]]] = {}
        part_of: dict[str, str] = {}
        for part in PARTS:
            path = folder / f"{part}.csv"
            parts[part] = _read(path)
            for name, label in parts[part]:
                if name not in present:
                    raise FileNotFoundError(f"there is no {images / name}, which {path} names")
                if part_of.setdefault(label, part) != part:
                    raise ValueError(
                        f"the class {label} is in {part_of[label]}.csv and in {path}; it must "
                        "have all of its images in one"
                    )
        return {
            {"val": "validation"}.get(part, part): self._generate_examples(images, part, rows)
            for part, rows in parts.items()
        }

    def _generate_examples(self, images, part: str, rows: list[tuple[str, str]]):
        """Yields the images as they are: a path is stored as the bytes of its file."""
        for name, label in rows:
            example = {"image/filename": name, "label": label, "part": part}
            yield name, {"image": images / name, **example}


def _read(path) -> list[tuple[str, str]]:
    """Returns the (filename, label) of every line of a csv file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns or no lines, or a label is no class of miniImageNet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which has to list images and their labels")
    lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    if not {"filename", "label"} <= set(lines.fieldnames or ()):
        raise ValueError(f"{path} must begin with the line filename,label")
    rows = []
    for line in lines:
        if line["label"] not in CLASSES:
            raise ValueError(
                f"{path}, line {lines.line_num}: {line['label']!r} is not one of miniImageNet's "
                f"100 classes, which are WordNet ids, such as {CLASSES[0]}"
            )
        rows.append((line["filename"], line["label"]))
    if not rows:
        raise ValueError(f"{path} lists no images")
    return rows
