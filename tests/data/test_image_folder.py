"""Folders of photos: layouts, decoding against TensorFlow and hand-made pixels, bad input."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from refilled_tf.common import settings
from refilled_tf.common.errors import InputError
from refilled_tf.data.image_folder import ImageFolder, notes
from refilled_tf.data.pixels import decode
from refilled_tf.data.sources import decode_image
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, load, select, student

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _save(path, number, kind=None):
    """Saves an image that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (number % 256, number // 256, 90)).save(path, kind)


@pytest.fixture
def flat(tmp_path):
    """Two classes of ten images."""
    for number in range(20):
        _save(tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number:02d}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def parted(tmp_path):
    """Two classes, four images each to train on, two each to validate and to test with."""
    for number in range(16):
        split = ("train", "train", "val", "test")[number // 4]
        _save(tmp_path / "parted" / split / ("cat", "dog")[number % 2] / f"{number}.png", number)
    return tmp_path / "parted"


def _task(folder, **options):
    return student(
        Data(ImageFolder(str(folder)), SharedClasses(), image_size=8, load_size=8, **options)
    )


# --- layouts --------------------------------------------------------------------------------


def test_flat_folder_is_split_by_class(flat):
    data = load(_task(flat, train_fraction=0.8))
    assert data.class_names == ("cat", "dog")
    # 80 % of 10 images of either class.
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    assert not set(data.train.keys) & set(data.test.keys)
    for part in (data.train, data.test):
        for key, label, image in zip(part.keys, part.labels, part.images, strict=True):
            assert key.split("/")[0] == data.class_names[label]
            assert (image == (int(key[4:6]), 0, 90)).all()


def test_split_folders_are_kept_and_val_trains_too(parted):
    data = load(_task(parted))
    assert {key.split("/")[0] for key in data.train.keys} == {"train", "val"}
    assert {key.split("/")[0] for key in data.test.keys} == {"test"}
    assert (len(data.train.keys), len(data.test.keys)) == (12, 4)


def test_val_takes_the_place_of_test(parted):
    shutil.rmtree(parted / "test")
    data = load(_task(parted))
    assert {key.split("/")[0] for key in data.test.keys} == {"val"}
    assert len(data.train.keys) == 8


def test_classes_may_be_called_train(flat):
    (flat / "cat").rename(flat / "train")
    assert ImageFolder(str(flat)).index().class_names == ("dog", "train")


def test_content_tells_folders_apart_and_copies_not(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "copy")
    first, copy = ImageFolder(str(flat)), ImageFolder(str(tmp_path / "copy"))
    assert first.content == copy.content
    _save(tmp_path / "copy/cat/00.png", 77)
    assert ImageFolder(str(tmp_path / "copy")).content != first.content


def test_notes_name_what_a_person_should_look_at(flat):
    (flat / "cat/00.png").unlink()
    (flat / "cat/00.heic").write_bytes(b"no kind that can be read")
    (flat / "readme.txt").write_text("mine")
    (flat / ".hidden").write_text("not listed")
    (flat / "dog/empty.png").touch()
    shutil.copy(flat / "dog/01.png", flat / "dog/copy.png")
    text = "\n".join(notes(ImageFolder(str(flat)).survey()))
    assert "expect little of these classes: cat (9)" in text
    assert "corrupt: dog/empty.png (it is empty)" in text
    assert "the same file: dog/01.png = dog/copy.png" in text
    assert "no images: cat/00.heic, readme.txt" in text
    assert "hidden" not in text


@pytest.mark.parametrize("suffix", ["", ".jfif", ".JPE", ".dat"])
def test_content_counts_and_not_the_suffix(flat, suffix):
    for path in (flat / "cat").iterdir():
        path.rename(path.with_suffix(suffix))
    index = ImageFolder(str(flat)).index()
    assert index.class_names == ("cat", "dog")
    assert np.bincount(index.labels).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("names", "shown"),
    [([], "nothing"), (["a.heic"], "a.heic"), (["1", "2", "3", "4", "5"], "1, 2, 3 and 2 more")],
)
def test_class_without_an_image_is_named(flat, names, shown):
    (flat / "fox").mkdir()
    for name in names:
        (flat / "fox" / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"class 'fox' has no image .*it holds {shown}\. Put"):
        ImageFolder(str(flat)).index()


def test_folders_of_an_archive_are_passed_over(parted):
    (parted / "__MACOSX").mkdir()
    assert ImageFolder(str(parted)).index().class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Valid", "Testing"),
        ("train", "validation", "TEST"),
        ("training_set", "dev", "test_set"),
        ("seg_train", "eval", "seg_test"),
        ("train_data", "evaluation", "test1"),
    ],
)
def test_other_names_of_splits(parted, names):
    for old, new in zip(("train", "val", "test"), names, strict=True):
        (parted / old).rename(parted / new)
    data = load(_task(parted))
    assert {key.split("/")[0] for key in data.train.keys} == set(names[:2])
    assert {key.split("/")[0] for key in data.test.keys} == {names[2]}


@pytest.mark.parametrize(
    "name", ["train_station", "pretrain", "training_set_b", "a_test", "latest"]
)
def test_names_that_are_of_no_split(flat, name):
    """Each holds the word for one."""
    for old, new in (("cat", name), ("dog", f"{name}_test_tube")):
        (flat / old).rename(flat / new)
    source = ImageFolder(str(flat))
    assert source.index().class_names == (name, f"{name}_test_tube")
    assert notes(source.survey()) == []


def test_split_folders_may_lie_in_folders_of_their_names(parted):
    """As training_set/training_set/ and test_set/test_set/ in an archive of cats and dogs."""
    for split in ("train", "test"):
        (parted / split).rename(parted / "inner")
        (parted / split).mkdir()
        (parted / "inner").rename(parted / split / split.upper())
    data = load(_task(parted))
    assert data.class_names == ("cat", "dog")
    # As in test_split_folders_are_kept_and_val_trains_too.
    assert (len(data.train.keys), len(data.test.keys)) == (12, 4)
    assert {key.split("/")[1] for key in data.test.keys} == {"TEST"}


def test_files_beside_split_folders_are_named(parted):
    _save(parted / "cover.png", 99)
    (parted / "labels.csv").write_text("mine")
    text = notes(ImageFolder(str(parted)).survey())
    assert "passed over, as they lie in no class's folder: cover.png" in text
    assert "passed over, as they are no images: labels.csv" in text


def test_a_class_named_as_a_split_is_noted(flat):
    """It may be a vehicle, and it may be Kaggle's train/cat.0.jpg beside a folder called images."""
    (flat / "cat").rename(flat / "train")
    (note,) = notes(ImageFolder(str(flat)).survey())
    assert note == ("taken for a class, though it is called as training or test images are: train")


def test_flat_test_folder_beside_val_is_passed_over(parted):
    """As of Kaggle's competitions, whose test images have no labels."""
    shutil.rmtree(parted / "test")
    for number in range(3):
        _save(parted / "test" / f"{number}.png", 100 + number)
    data = load(_task(parted))
    assert {key.split("/")[0] for key in data.test.keys} == {"val"}
    text = "\n".join(notes(ImageFolder(str(parted)).survey()))
    assert "passed over, as they have no folders of classes: test" in text


def test_what_is_passed_over_is_named_for_the_true_reason(flat):
    (flat / "cat/more").mkdir()
    (flat / "dog/gone.png").symlink_to(flat / "nowhere.png")
    _save(flat / "cover.png", 99)
    (flat / "cat/notes.txt").write_text("mine")
    text = notes(ImageFolder(str(flat)).survey())
    assert "passed over, as they are folders in a class's folder: cat/more" in text
    assert "passed over, as they are links to nothing: dog/gone.png" in text
    assert "passed over, as they lie in no class's folder: cover.png" in text
    assert "passed over, as they are no images: cat/notes.txt" in text


def test_long_notes_are_shortened(flat):
    for number in range(13):
        (flat / f"cat/{number:02d}.txt").write_text("mine")
    (short,) = notes(ImageFolder(str(flat)).survey(), where=", in notes.txt")
    assert short.endswith("cat/08.txt, cat/09.txt, … and 3 more, in notes.txt")
    (whole,) = notes(ImageFolder(str(flat)).survey(), shown=None)
    assert whole.endswith("cat/11.txt, cat/12.txt")


def test_classes_that_differ_in_case_are_noted(flat):
    """Letters may well be two classes, "a" and "A"."""
    (flat / "dog").rename(flat / "Cat")
    (note,) = notes(ImageFolder(str(flat)).survey())
    assert note.endswith("they differ in case, blanks or Unicode form alone: Cat and cat")


def test_copies_in_a_class_count_once(flat):
    shutil.copy(flat / "dog/01.png", flat / "dog/copy.png")
    keys = ImageFolder(str(flat)).index().keys
    assert len(keys) == 20
    assert "dog/copy.png" not in keys


def test_crossing_copies_can_be_left_out_of_the_test(parted):
    shutil.copy(parted / "train/cat/0.png", parted / "test/cat/copy.png")
    index = ImageFolder(str(parted), on_crossing="train").index()
    assert "train/cat/0.png" in index.keys
    assert "test/cat/copy.png" not in index.keys


def test_photos_of_two_classes_can_be_left_out_of_both(flat):
    shutil.copy(flat / "cat/00.png", flat / "dog/mine.png")
    source = ImageFolder(str(flat), on_conflict="skip")
    keys = source.index().keys
    assert len(keys) == 19
    assert not {"cat/00.png", "dog/mine.png"} & set(keys)


def test_a_new_option_at_its_default_is_no_setting(flat):
    """Or a training from before there was such an option would not go on."""
    listed = settings.flatten(ImageFolder(str(flat)))
    assert listed.keys() == {"ImageFolder.on_crossing", "ImageFolder.content"}
    skipping = settings.flatten(ImageFolder(str(flat), on_conflict="skip"))
    assert skipping["ImageFolder.on_conflict"] == "skip"


# --- decoding -------------------------------------------------------------------------------


def _encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _photo(mode="RGB"):
    """A smooth gradient with some texture, so that JPEG keeps it."""
    y, x = np.mgrid[:40, :60]
    channels = [4 * x + y, 250 - 4 * y, 120 + 80 * np.sin(x / 5) * np.cos(y / 7)]
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 75, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_ordinary_images_are_those_that_exports_see(kind, mode, options):
    encoded = _encoded(_photo(mode), kind, **options)
    served = tf.io.decode_image(encoded, 3, expand_animations=False).numpy().astype(int)
    # Both call a libjpeg; the cosine transform of one is rounded otherwise than the other's.
    assert np.abs(decode(encoded) - served).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_those_that_exports_see(mode):
    image = _photo("RGBA").resize((16, 16))
    image.putalpha(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    image = image.convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    encoded = _encoded(image, "PNG", **options)
    assert (decode(encoded)[0, 0] == 255).all()
    served = decode_image(encoded, None, 16).numpy().astype(int)
    # Pillow blends in whole numbers too, but with fewer bits.
    assert np.abs(decode(encoded) - served).max() <= 1


def test_resizing_is_that_of_exports(flat):
    path = flat / "cat/00.png"
    _photo().save(path)
    images, readable = ImageFolder(str(flat)).images(["cat/00.png"], 16)
    assert readable.all()
    np.testing.assert_array_equal(images[0], decode_image(path.read_bytes(), None, 16))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP"])
def test_other_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    flag = Image.new("RGB", (8, 8), RED)
    flag.paste(BLUE, (4, 0, 8, 8))
    np.testing.assert_array_equal(decode(_encoded(flag, kind, **options)), np.asarray(flag))


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED)]
    animation = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(animation) == GREEN).all()


def test_cmyk_jpeg_is_its_rgb():
    encoded = _encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    # No cyan, all magenta and yellow: red.
    assert np.abs(decode(encoded).astype(int) - RED).max() <= 3


def test_sixteen_bits_are_cut_to_eight():
    grey = np.array([[0, 256, 32768], [65535, 255, 511]], np.uint16)
    pixels = decode(_encoded(Image.fromarray(grey), "PNG"))
    wanted = [[0, 1, 128], [255, 0, 1]]  # the high byte
    np.testing.assert_array_equal(pixels, np.repeat(np.array(wanted)[..., None], 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_lies_on_white(kind):
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    image.paste((*BLUE, 255), (0, 0, 4, 8))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(_encoded(image, kind, **options))
    assert (pixels[:, :4] == BLUE).all()
    assert (pixels[:, 4:] == 255).all()


def test_transparent_colour_of_a_palette_lies_on_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 4, 8))
    pixels = decode(_encoded(image, "PNG", transparency=0))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == BLUE).all()


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image, -1)),  # as EXIF 2.3: the 0th row is the right-hand side
        (8, lambda image: np.rot90(image)),
    ],
)
def test_exif_orientation_is_respected(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = _photo()
    pixels = decode(_encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, turned(np.asarray(image)))


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_broken_exif_is_damage(kind):
    with pytest.raises(InputError, match="it is damaged"):
        decode(_encoded(_photo(), kind, exif=b"Exif\0\0neither endianness"))


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _without_images(folder):
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text("no image")
        path.unlink()


def _one_class(folder):
    shutil.rmtree(folder / "cat")


def _one_image(folder):
    for path in sorted((folder / "cat").iterdir())[1:]:
        path.unlink()


def _in_two_classes(folder):
    shutil.copy(folder / "cat/00.png", folder / "dog/mine.png")


def _empty_file(folder):
    (folder / "cat/00.png").write_bytes(b"")


def _two_empty_files(folder):
    for name in ("cat/00.png", "dog/01.png"):
        (folder / name).write_bytes(b"")


def _renamed_text(folder):
    (folder / "cat/00.png").write_text("This is no photo.\n" * 50)


def _truncated(folder):
    _photo().save(folder / "cat/00.png")
    content = (folder / "cat/00.png").read_bytes()
    (folder / "cat/00.png").write_bytes(content[: len(content) // 2])


def _no_test(folder):
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)


def _flat_test(folder):
    _no_test(folder)
    _save(folder / "test/1.png", 99)


def _flat_splits(folder):
    for old, new in (("cat", "train"), ("dog", "test")):
        (folder / old).rename(folder / new)


def _flat_numbered_test(folder):
    """Kaggle's cats and dogs, unpacked."""
    (folder / "cat").rename(folder / "train")
    (folder / "test1").mkdir()
    (folder / "dog").rename(folder / "test1/test1")


def _two_vals(folder):
    _no_test(folder)
    for number, name in enumerate(("val/cat", "valid/cat")):
        _save(folder / name / "1.png", 100 + number)


def _one_folder_too_high(folder):
    (folder / "all").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "all" / name)


def _splits_one_folder_deeper(folder):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(folder / name, folder / "mine" / split / name)
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)


def _two_groups(folder):
    for name in ("cat", "dog"):
        (folder / f"{name}s").mkdir()
        (folder / name).rename(folder / f"{name}s" / name)


def _class_itself(folder):
    for path in sorted((folder / "cat").iterdir()):
        path.rename(folder / path.name)
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)


def _deeper_class(folder):
    (folder / "cat/all").mkdir()
    for path in sorted((folder / "cat").glob("*.png")):
        path.rename(folder / "cat/all" / path.name)


def _two_empty_classes(folder):
    for name in ("fox", "owl"):
        (folder / name).mkdir()


def _stray_beside_splits(folder):
    for split in ("train", "test"):
        (folder / split).mkdir()
    (folder / "cat").rename(folder / "train/cat")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, r"photos holds no images; wanted is a folder for every class"),
        (_without_images, r"class 'cat' has no image that can be read; it holds 00\.txt, 02\.txt"),
        (
            _one_folder_too_high,
            r"one folder too high: .* all/cat/00\.png; give .*photos/all instead",
        ),
        (_splits_one_folder_deeper, r"one folder too high: .*; give .*photos/mine instead"),
        (_two_groups, r"deeper than photos/CLASS/\*, such as cats/cat/00\.png; give one of .*cats"),
        (_class_itself, r"holds 10 images, such as 00\.png, and no folders; .*If 'photos' is a"),
        (_deeper_class, r"class 'cat' has no image .* that lie deeper, such as cat/all/00\.png"),
        (_two_empty_classes, r"class 'fox' has no image .*; class 'owl' has no image .* into each"),
        (_flat_test, r"test/ has images but no folders of classes, .*--images=.*photos/train\)"),
        (
            _flat_splits,
            r"test/ and train/ have images \(such as train/00\.png\) but no folders of classes, .*"
            r"train/CLASS/\* and test/CLASS/\*: make .* give --images=\S+/photos/train, whose",
        ),
        (_flat_numbered_test, r"test1/ and train/ have images \(such as train/00\.png\) but no"),
        (_two_vals, r"photos has both val and valid; put their images into one"),
        (_one_class, r"photos holds the single class 'dog'; at least two"),
        (_one_image, r"leaves class 'cat' \(1 images\) without test images; add images"),
        (_in_two_classes, r"cat/00\.png and dog/mine\.png .*same file in two classes, 'cat' and"),
        (_empty_file, r"1 image\(s\) cannot be decoded: cat/00\.png"),
        (_two_empty_files, r"2 image\(s\) cannot be decoded: .*cat/00\.png"),
        (_renamed_text, r"1 image\(s\) cannot be decoded: cat/00\.png"),
        (_truncated, r"1 image\(s\) cannot be decoded: cat/00\.png"),
        (_no_test, r"photos has the folders train; wanted are either"),
        (_stray_beside_splits, r"photos has the folders train, dog, test; wanted are either"),
        (_stray_beside_splits, r"Rename dog to one of these, or move it out of photos/$"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folder(flat, spoil, message):
    spoil(flat)
    with pytest.raises(InputError, match=message):
        load(_task(flat, train_fraction=0.8))


def test_image_with_too_many_pixels_is_an_error_whatever_it_is_called(flat, monkeypatch):
    Image.new("RGB", (60, 50)).save(flat / "cat/large", "PNG")
    # Pillow refuses what has more than twice as many; the others have 320.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be decoded: cat/large \(it has"):
        load(_task(flat, train_fraction=0.8))


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"ImageFolder\.folder=.*nowhere is not a folder"):
        ImageFolder(str(tmp_path / "nowhere")).index()


def test_file_in_training_and_test(parted):
    shutil.copy(parted / "train/cat/0.png", parted / "test/cat/copy.png")
    match = r"train/cat/0\.png and test/cat/copy\.png .* in training and test"
    with pytest.raises(InputError, match=match):
        select(_task(parted), ImageFolder(str(parted)).index())


def test_all_files_at_fault_are_named_at_once(parted):
    for number, split in ((0, "test"), (2, "test")):
        shutil.copy(parted / f"train/cat/{number}.png", parted / split / f"cat/copy_{number}.png")
    shutil.copy(parted / "train/cat/4.png", parted / "train/dog/mine.png")
    with pytest.raises(InputError) as caught:
        ImageFolder(str(parted)).index()
    said = str(caught.value)
    for pair in (
        "train/cat/0.png and test/cat/copy_0.png",
        "train/cat/2.png and test/cat/copy_2.png",
        "train/cat/4.png and train/dog/mine.png",
    ):
        assert pair in said
    assert """--gin_param='ImageFolder.on_conflict = "skip"'""" in said
    assert """--gin_param='ImageFolder.on_crossing = "train"'""" in said
    assert caught.value.details == ()


@pytest.mark.parametrize("name", ["Cat", "cat ", "cat\N{COMBINING DIAERESIS}"])
def test_class_in_two_spellings_is_named(parted, name):
    (parted / "test/cat").rename(parted / "test" / name)
    if "\N{COMBINING DIAERESIS}" in name:
        for split in ("train", "val"):
            (parted / split / "cat").rename(
                parted / split / "ca\N{LATIN SMALL LETTER T WITH DIAERESIS}"
            )
    with pytest.raises(InputError, match=r"differ in case, blanks or Unicode form alone, .*rename"):
        ImageFolder(str(parted)).index()


def test_classes_missing_in_test_are_named(parted):
    for number, name in enumerate(("fox", "owl")):
        _save(parted / "train" / name / "1.png", 100 + number)
    message = r"leaves class 'fox' \(1 images\), 'owl' \(1 images\) without test images; .*0\.8'"
    with pytest.raises(InputError, match=message):
        select(_task(parted), ImageFolder(str(parted)).index())


def test_too_large_picture_says_its_size_and_what_leaves_it_out(flat, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    Image.new("L", (2000, 2000)).save(flat / "cat/00.png")
    message = r"cat/00\.png \(it has 4 megapixels, more than the 3 .*'Data\.on_corrupt = \"skip\"'"
    with pytest.raises(InputError, match=message):
        load(_task(flat, train_fraction=0.8))


def test_files_that_may_not_be_read_are_named(flat, monkeypatch):
    closed = {str(flat / "cat/00.png"), str(flat / "dog/01.png")}
    access = os.access
    # Root, whom tests may run as, may read all.
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) not in closed and access(path, mode)
    )
    with pytest.raises(InputError, match=r"2 image\(s\) may not be read: cat/00\.png, dog/01\.png"):
        ImageFolder(str(flat)).index()


def test_class_lost_by_skipping_is_named(flat):
    _one_image(flat)
    shutil.copy(flat / "dog/01.png", flat / "cat/a.png")
    (flat / "cat/a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"that cannot be decoded leave class 'cat' without"):
        load(_task(flat, train_fraction=0.5, on_corrupt="skip"))


def test_unknown_choice_is_refused(flat):
    with pytest.raises(InputError, match=r"on_crossing='maybe' must be 'error' or 'train'"):
        ImageFolder(str(flat), on_crossing="maybe")


def test_path_that_is_not_utf8_is_named(flat):
    """As a zip or a disk of a Latin-1 system leaves it."""
    os.mkdir(os.fsencode(flat) + b"/M\xf6we")
    (flat / os.fsdecode(b"M\xf6we") / "1.png").write_bytes((flat / "cat/00.png").read_bytes())
    with pytest.raises(InputError, match=r"b'M\\xf6we/1\.png' is not UTF-8; rename it"):
        ImageFolder(str(flat)).index()
