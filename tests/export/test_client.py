"""The client, over both protocols, against the embedded server.

Expected names and scores are those of the Keras network.
"""

import re

import commands
import embedded
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow_serving.apis.model_pb2 import ModelSpec

from export import client
from refilled_tf.common.errors import InputError
from refilled_tf.data import pixels
from refilled_tf.models import networks

NOTHING = {"image_bytes": [b""]}


@pytest.fixture(scope="module")
def server(base):
    with embedded.server(base) as running:
        yield running


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Two test images as files."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / "first.png", folder / "second image.png"]
    for path, image in zip(paths, model.data.test.images, strict=False):
        path.write_bytes(tf.io.encode_png(image).numpy())
    return paths


@pytest.fixture(scope="module")
def printed(model, files):
    """What the client is to print of them."""
    images = model.data.test.images[: len(files)].astype(np.float32)
    logits = networks.outputs_of(model.network, [images])["logits"]
    blocks = []
    for path, row in zip(files, tf.nn.softmax(logits).numpy(), strict=True):
        best = np.argsort(-row)
        lines = (f"  {100 * row[i]:6.2f} %  {model.data.class_names[i]}\n" for i in best)
        blocks.append(f"{path}\n" + "".join(lines))
    return "".join(blocks)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_classes_are_printed(protocol, server, files, printed):
    address = {"grpc": f"grpc://{server.grpc}", "http": server.http}[protocol]
    run = commands.run("export.client", f"--address={address}", "--label=stable", *files)
    assert (run.returncode, run.stdout) == (0, printed), run.stderr


def test_image_is_turned_as_its_orientation_says(server, files, printed, tmp_path):
    """Stored lying on its side, with the orientation that puts it upright again; and as WebP."""
    upright = PIL.Image.open(files[0]).convert("RGB")
    exif = PIL.Image.Exif()
    exif[pixels.ORIENTATION] = 6
    lying = upright.transpose(PIL.Image.Transpose.ROTATE_90)
    for path, options in (
        (tmp_path / "turned.png", {"exif": exif}),
        (tmp_path / "other.webp", {"lossless": True}),
    ):
        (lying if "exif" in options else upright).save(path, **options)
        run = commands.run("export.client", f"--address={server.http}", path)
        wanted = printed.split(str(files[1]))[0].replace(str(files[0]), str(path))
        assert (run.returncode, run.stdout) == (0, wanted), run.stderr


def test_file_that_is_no_image_is_named(files, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    run = commands.run("export.client", files[0], tmp_path / "notes.txt")
    assert run.returncode == 1
    assert f"error: {tmp_path / 'notes.txt'}: it is no JPEG, PNG" in run.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_classes_are_learnt_from_files_and_folders(protocol, server, model, tmp_path):
    """Every image is its class's support too, so that it is the nearest to its own class."""
    first, second = (np.flatnonzero(model.data.test.labels == label)[:2] for label in (0, 1))
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "folder/1.png", tmp_path / "folder/2.png", tmp_path / "one.png"]
    for path, row in zip(paths, [*first, second[0]], strict=True):
        path.write_bytes(tf.io.encode_png(model.data.test.images[row]).numpy())
    (tmp_path / "folder/.DS_Store").write_bytes(b"\0\0\0\1Bud1")  # macOS puts one everywhere
    run = commands.run(
        "export.client",
        f"--address={ {'grpc': server.grpc, 'http': server.http}[protocol] }",
        f"--support=one name={tmp_path / 'folder'}",
        f"--support=another={paths[2]}",
        *(paths[0], paths[2]),
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0::3] == [str(paths[0]), str(paths[2])]
    assert [line.split("%  ")[1] for line in lines[1::3]] == ["one name", "another"]
    assert [line.split("%  ")[1] for line in lines[2::3]] == ["another", "one name"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cat"], "--support=cat must be CLASS=FILE or CLASS=FOLDER"),
        (["=x.png"], "--support==x.png must be CLASS=FILE or CLASS=FOLDER"),
        (["cat=absent.png"], "absent.png cannot be read"),
        (["cat={folder}"], "the folder holds no file"),
        (["cat={file}", "cat={file}"], "'cat' alone; at least 2"),
    ],
)
def test_impossible_support_is_refused(options, message, files, tmp_path):
    filled = [option.format(folder=tmp_path, file=files[0]) for option in options]
    with pytest.raises(InputError, match=re.escape(message)):
        client.support(filled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png does not exist"),
        ([], "no image is given: python -m export.client [--flags] IMAGE…"),
    ],
)
def test_command_ends_with_one_line_on_bad_input(arguments, message):
    run = commands.run("export.client", *arguments)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1] == f"error: {message}"


@pytest.mark.parametrize(
    ("spec", "image", "by_grpc", "by_rest"),
    [
        (
            {"name": "other"},
            b"",
            "NOT_FOUND: Servable not found for request: Latest(other)",
            "404: Servable not found for request: Latest(other)",
        ),
        (
            {"name": "refilled", "version": {"value": 7}},
            b"",
            "NOT_FOUND: Servable not found for request: Specific(refilled, 7)",
            "404: Servable not found for request: Specific(refilled, 7)",
        ),
        (
            {"name": "refilled", "version_label": "a/b"},
            b"",
            "INVALID_ARGUMENT: Unrecognized servable version label: a/b; there are canary, stable",
            "400: Unrecognized servable version label: a/b; there are canary, stable",
        ),
        (
            {"name": "refilled"},
            b"no image",
            "INVALID_ARGUMENT: image_bytes[0]: it is no JPEG, PNG, BMP, GIF or WebP",
            "400: image_bytes[0]: it is no JPEG, PNG, BMP, GIF or WebP",
        ),
    ],
)
def test_refusals_of_the_server(spec, image, by_grpc, by_rest, server):
    spec = ModelSpec(signature_name="serving_bytes", **spec)
    with pytest.raises(InputError, match=f"^{re.escape(f'{server.grpc}: {by_grpc}')}$"):
        client.over_grpc(server.grpc, spec, {"image_bytes": [image]})
    with pytest.raises(InputError, match=f"^{re.escape(f'{server.http}: {by_rest}')}$"):
        client.over_rest(server.http, spec, {"image_bytes": [image]})


def test_addresses_where_nothing_of_the_kind_listens(server):
    spec = ModelSpec(name="refilled", signature_name="serving_bytes")
    with pytest.raises(InputError, match="localhost:1: UNAVAILABLE: "):
        client.over_grpc("localhost:1", spec, NOTHING)
    with pytest.raises(InputError, match="http://localhost:1 cannot be asked: "):
        client.over_rest("http://localhost:1", spec, NOTHING)
    # The ports of one protocol do not speak the other.
    with pytest.raises(InputError, match="UNAVAILABLE"):
        client.over_grpc(server.http.removeprefix("http://"), spec, NOTHING)
    with pytest.raises(InputError, match="cannot be asked"):
        client.over_rest(f"http://{server.grpc}", spec, NOTHING)
