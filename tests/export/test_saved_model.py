"""Exports of a small trained network: what they answer, what lies in them, when they fail.

The network is trained on scikit-learn's digits; where nothing else is said, expected values are
what that Keras network gives for the same pixels.
"""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import commands
import digits
import images
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from scipy.special import softmax
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import check, requests, server_files, signatures, trained, versions
from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches
from refilled_tf.data.sources import Digits, decode_image
from refilled_tf.data.splits import AlphabeticalHalves
from refilled_tf.data.task import Data
from refilled_tf.models import networks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ["5", "6", "7", "8", "9"]  # what gin/data/digits.gin gives the student
SIGNATURES = {
    *("serving_default", "serving_bytes", "serving_tensor", "embedding", "classify"),
    "serving_support",
}


@pytest.fixture(scope="session")
def served(version):
    return tf.saved_model.load(str(version)).signatures


@pytest.fixture(scope="session")
def wanted(model):
    """What the Keras network gives for every test image."""
    size = model.stage.task.data.image_size
    outputs = networks.outputs_of(model.network, batches.scoring_batches(model.data.test, size))
    embedding = outputs["embedding"]
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    return {
        "probabilities": probabilities,
        "scores": -np.sort(-probabilities, axis=1),
        "embedding": embedding / np.linalg.norm(embedding, axis=1, keepdims=True),
    }


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves the check of an export out, which is tested elsewhere and takes its seconds."""
    monkeypatch.setattr(check, "check", lambda folder, trained: 0.0)


def _ask(signature, **inputs):
    return {name: out.numpy() for name, out in signature(**_constants(inputs)).items()}


def _constants(inputs):
    return {name: tf.constant(value) for name, value in inputs.items()}


def _png(pixels):
    return tf.io.encode_png(pixels.astype(np.uint8)).numpy()


def _example(encoded):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


# What it answers.


@pytest.mark.parametrize(
    ("name", "key", "outputs"),
    [
        ("serving_default", "examples", {"classes", "scores", "probabilities"}),
        ("serving_bytes", "image_bytes", {"classes", "scores", "probabilities"}),
        ("serving_tensor", "images", {"classes", "scores", "probabilities"}),
        ("embedding", "image_bytes", {"embedding"}),
        ("classify", "inputs", {"classes", "scores"}),
    ],
)
def test_signature_answers_as_the_network(name, key, outputs, served, model, wanted):
    test = model.data.test
    pngs = [_png(image) for image in test.images]
    value = {
        "image_bytes": pngs,
        "images": test.images.astype(np.float32),
    }.get(key, [_example(png) for png in pngs])
    reply = _ask(served[name], **{key: value})

    assert reply.keys() == outputs
    for output in outputs - {"classes"}:
        np.testing.assert_allclose(reply[output], wanted[output], atol=1e-5)
    if "classes" in outputs:
        # The training measured the accuracy on its own way; by chance it would be a fifth.
        right = reply["classes"][:, 0] == np.array(DIGITS)[test.labels].astype(bytes)
        assert np.mean(right) == pytest.approx(model.result["accuracy"])
        assert np.mean(right) > 0.6
        ranked = np.argsort(-wanted["probabilities"], axis=1, kind="stable")
        assert np.mean(reply["classes"] == np.array(DIGITS)[ranked].astype(bytes)) > 0.99


@pytest.mark.parametrize("shape", [(8, 8), (45, 20), (20, 200)])
def test_images_of_any_size_and_channels_answer_together(shape, served, model):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (*shape, 3))
    grey = np.repeat(pixels[..., :1], 3, axis=-1)
    alpha = random.integers(0, 256, (*shape, 1))
    on_white = np.rint((pixels * alpha + 255 * (255 - alpha)) / 255)
    jpeg = tf.io.encode_jpeg(pixels.astype(np.uint8)).numpy()
    # Left what is sent, right the same colours as the plainest file that has them.
    pairs = [
        (_png(pixels), _png(pixels)),
        (_png(grey[..., :1]), _png(grey)),
        (_png(np.concatenate([pixels, alpha], axis=-1)), _png(on_white)),
        (jpeg, _png(tf.io.decode_jpeg(jpeg, channels=3).numpy())),
    ]
    reply = _ask(served["serving_bytes"], image_bytes=[sent for sent, _ in pairs])
    seen = [decode_image(plain, None, 32) for _, plain in pairs]
    logits = model.network(tf.cast(tf.stack(seen), tf.float32), training=False)["logits"]
    np.testing.assert_allclose(reply["probabilities"], tf.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_empty_batch_is_answered_by_nothing(name, served, model):
    size = model.stage.task.data.image_size
    asked = requests.make(
        np.zeros((1, size, size, 3), np.uint8), np.zeros((1, size, size, 3), np.float32)
    )
    # The last input is what answers are for; of others there must be some.
    *support, (key, one) = asked[name].items()
    classes = 1 if support else len(DIGITS)
    dtype = tf.float32 if one.dtype == np.float32 else tf.string
    empty = {key: tf.zeros((0, *one.shape[1:]), dtype)}
    reply = served[name](**_constants(dict(support)), **empty)
    widths = {"embedding": model.network.output["embedding"].shape[1]}
    assert {n: tuple(out.shape) for n, out in reply.items()} == {
        n: (0, widths.get(n, classes)) for n in reply
    }


def test_support_is_learnt_as_by_scikit_learns_nearest_centroid(served, model, wanted):
    test, random = model.data.test, np.random.default_rng(0)
    rows = random.permutation(len(test.labels))
    support, query = rows[:12], rows[12:60]
    names = np.array(["five", "six", "seven", "eight", "nine"])[test.labels]
    pngs = np.array([_png(image) for image in test.images], object)
    reply = _ask(
        served["serving_support"],
        support_bytes=pngs[support],
        support_labels=names[support],
        query_bytes=pngs[query],
    )
    nearest = NearestCentroid().fit(wanted["embedding"][support], names[support])
    # scikit-learn leaves the means as they are; ours, as in trainings, are brought to length 1.
    nearest.centroids_ = normalize(nearest.centroids_)
    predicted = nearest.predict(wanted["embedding"][query])
    assert np.mean(reply["classes"][:, 0] == predicted.astype(bytes)) > 0.97  # but for near ties

    distances = euclidean_distances(wanted["embedding"][query], nearest.centroids_, squared=True)
    scores = softmax(-distances, axis=1)
    np.testing.assert_allclose(reply["scores"], -np.sort(-scores, axis=1)[:, :5], atol=1e-5)


def test_of_equally_near_classes_the_first_in_the_support_comes_first(served, model):
    image = _png(model.data.test.images[0])
    reply = _ask(
        served["serving_support"],
        support_bytes=[image] * 3,
        support_labels=["z", "a", "m"],
        query_bytes=[image],
    )
    assert reply["classes"].tolist() == [[b"z", b"a", b"m"]]
    np.testing.assert_allclose(reply["scores"], [[1 / 3] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "names", "message"),
    [
        (2, 1, "support_bytes holds 2 images, support_labels 1 names"),
        (0, 0, "support_bytes holds no image"),
    ],
)
def test_impossible_support_is_an_error_of_the_request(images, names, message, served, model):
    image = _png(model.data.test.images[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["serving_support"](
            support_bytes=tf.constant([image] * images, tf.string),
            support_labels=tf.constant(["a"] * names, tf.string),
            query_bytes=tf.constant([image]),
        )


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("serving_default", "examples", [b"no example"], "Could not parse example"),
        ("classify", "inputs", [tf.train.Example().SerializeToString()], "image/encoded"),
    ],
)
def test_what_is_no_example_is_an_error_of_the_request(name, key, value, message, served):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[name](**{key: tf.constant(value)})


@pytest.fixture(scope="session")
def by_session(version):
    """A function that asks "serving_bytes" as the C++ server does."""
    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph())
    graph = v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(version))
    signature = graph.signature_def["serving_bytes"]
    key, output = signature.inputs["image_bytes"].name, signature.outputs["scores"].name
    yield lambda image_bytes: session.run(output, {key: image_bytes})
    session.close()


@pytest.mark.parametrize(("content", "message"), images.BAD.values(), ids=images.BAD)
def test_what_is_no_image_is_an_error_of_the_request(content, message, served, by_session):
    message = re.escape(message)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["serving_bytes"](image_bytes=tf.constant([content]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        by_session([content])


def test_limit_of_pixels(served, by_session):
    largest = images.black_png(2**13, 2**12)
    assert by_session([largest]).shape == (1, 5)
    assert served["serving_bytes"](image_bytes=tf.constant([largest]))["scores"].shape == (1, 5)
    message = f"an image has {2**12 * (2**13 + 1)} pixels, the limit is {2**25}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        by_session([images.black_png(2**13 + 1, 2**12)])


def test_centre_is_cropped_and_seven_classes_give_five_names(tmp_path):
    # The network's logits are the mean of red times 0 … 6: its answer tells what it has seen.
    images = tf.keras.Input((4, 4, 3))
    red = tf.keras.layers.GlobalAveragePooling2D()(images)[:, :1]
    outputs = {"embedding": red, "logits": red * tf.range(7.0)}
    names = [f"{i}: naïve" for i in range(7)]
    data = Data(Digits(), AlphabeticalHalves(), image_size=4, load_size=8)
    signatures.save(tf.keras.Model(images, outputs), data, names, tmp_path)

    pixels = np.full((8, 8, 3), 200)  # a bright frame around a centre of red 2
    pixels[2:6, 2:6] = 2
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_bytes"]
    reply = _ask(signature, image_bytes=[_png(pixels)])

    powers = np.exp(2.0 * np.arange(7))
    np.testing.assert_allclose(reply["probabilities"][0], powers / powers.sum(), rtol=1e-5)
    np.testing.assert_allclose(reply["scores"][0], powers[:1:-1] / powers.sum(), rtol=1e-5)
    assert [name.decode() for name in reply["classes"][0]] == names[:1:-1]


# What lies in it.


def test_method_names_are_those_of_the_servers_calls(version):
    saved = SavedModel.FromString((version / "saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    methods = {name: graph.signature_def[name].method_name for name in SIGNATURES}
    predict, classify = "tensorflow/serving/predict", "tensorflow/serving/classify"
    assert methods == dict.fromkeys(SIGNATURES, predict) | {"classify": classify}


def test_vocabulary_is_an_asset(version):
    assert (version / "assets/classes.txt").read_text().splitlines() == DIGITS


def test_warmup_has_a_record_for_every_signature_that_it_answers(version, served):
    records = tf.data.TFRecordDataset(str(version / "assets.extra/tf_serving_warmup_requests"))
    logs = [PredictionLog.FromString(record) for record in records.as_numpy_iterator()]
    asked = {}
    for log in logs:
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = request.input.example_list.examples
            inputs = {"inputs": [example.SerializeToString() for example in examples]}
        else:
            request = log.predict_log.request
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert request.model_spec.name == "refilled"
        asked[request.model_spec.signature_name] = inputs
    assert len(logs) == len(asked)
    assert asked.keys() == SIGNATURES == set(served)
    for name, inputs in asked.items():
        for output in _ask(served[name], **inputs).values():
            assert len(output) == 1


def test_model_card_tells_what_is_known(version, model):
    card = (version / "model_card.md").read_text()
    test = model.data.test
    for fact in (
        *(f"{row}. {name}" for row, name in enumerate(DIGITS)),
        f"{100 * model.result['accuracy']:.2f} % on {len(test.labels)} test images",
        "250, 50 of every class",
        "learnt from labels alone",
        "| `embedding` | `image_bytes` string [B] | `embedding` float32 [B, 256] |",
        "| `serving_support` | `support_bytes` string [N]<br>`support_labels` string [N]<br>",
        "| `serving_tensor` | `images` float32 [B, 32, 32, 3] | `classes` string [B, 5]<br>",
        "    student/Recipe.epochs = 6\n",
        f"tensorflow {tf.__version__}",
    ):
        assert fact in card


# The folder of the versions.


def test_base_holds_the_version_and_the_servers_files(base, version):
    assert sorted(path.name for path in base.iterdir()) == sorted([version.name, "server"])


def test_version_is_never_overwritten_and_stable_waits_for_a_person(
    model, tmp_path, monkeypatch, unchecked
):
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    published = [versions.publish(model, tmp_path).name for _ in range(2)]
    assert published == ["1700000000", "1700000001"]

    (ours,) = server_files.read_models(tmp_path).model_config_list.config
    assert dict(ours.version_labels) == {"stable": 1_700_000_000, "canary": 1_700_000_001}
    assert list(ours.model_version_policy.specific.versions) == [1_700_000_000, 1_700_000_001]


def test_label_that_a_person_moves_during_an_export_stays(model, tmp_path, monkeypatch):
    times = iter([1.0, 2.0, 3.0])
    # Of this module alone: TensorFlow looks at the clock too.
    monkeypatch.setattr(versions, "time", types.SimpleNamespace(time=lambda: next(times)))
    monkeypatch.setattr(check, "check", lambda *args: 0.0)
    for _ in range(2):
        versions.publish(model, tmp_path)

    def released_meanwhile(*args):
        models = server_files.read_models(tmp_path)
        models.model_config_list.config[0].version_labels["stable"] = 2
        server_files.write(tmp_path, models)
        return 0.0

    monkeypatch.setattr(check, "check", released_meanwhile)
    versions.publish(model, tmp_path)
    (ours,) = server_files.read_models(tmp_path).model_config_list.config
    assert dict(ours.version_labels) == {"stable": 2, "canary": 3}


def test_what_a_killed_export_left_goes_with_the_next_one(model, tmp_path, monkeypatch):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = [f".{killed.pid}-1700000000", storage.temporary_beside(tmp_path / "1700000000").name]
    left[1] = left[1].replace(f"@{os.getpid()}-", f"@{killed.pid}-")
    for name in left:
        (tmp_path / name / "variables").mkdir(parents=True)
    monkeypatch.setattr(versions, "save", lambda trained, folder: folder.mkdir())
    version = versions.publish(model, tmp_path)
    assert version.is_dir()
    assert not any((tmp_path / name).exists() for name in left)


def test_no_version_comes_after_the_highest(model, tmp_path):
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(InputError, match="9223372036854775807, the highest version there is"):
        versions.publish(model, tmp_path)


def test_folder_that_comes_up_meanwhile_is_left_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 7.0)

    def another_export(folder, trained):
        storage.write_text(tmp_path / "7/saved_model.pb", "another's")
        return 0.0

    monkeypatch.setattr(check, "check", another_export)
    with pytest.raises(InputError, match="cannot be written"):
        versions.publish(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    assert (tmp_path / "7/saved_model.pb").read_text() == "another's"


def test_labels_keep_what_a_person_has_set_and_drop_what_is_gone():
    models = server_files.label(ModelServerConfig(), [], 1)
    models.model_config_list.config.add(name="other", base_path="/models/other")
    ours = models.model_config_list.config[0]
    ours.version_labels["mine"], ours.version_labels["old"] = 2, 3

    ours = server_files.label(models, [1, 2], 9).model_config_list.config[0]
    assert dict(ours.version_labels) == {"stable": 1, "mine": 2, "canary": 9}
    assert list(ours.model_version_policy.specific.versions) == [1, 2, 9]
    both = server_files.label(models, [2], 9).model_config_list.config
    assert dict(both[0].version_labels) == {"stable": 9, "mine": 2, "canary": 9}
    assert both[1].name == "other"


def test_docker_is_given_the_folder_and_files_that_are_there(base, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(0o755)
    arguments = subprocess.run(
        ["sh", base / "server/docker_run.sh"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert arguments[0] == "run"
    assert f"type=bind,source={base},target=/models/refilled,readonly" in arguments
    paths = [flag.split("=")[1] for flag in arguments if "_file=" in flag]
    assert paths == ["/models/refilled/server/models.config"]
    # Joined requests would mix the classes that several callers teach.
    assert not any("batching" in flag for flag in arguments)
    for path in paths:
        assert (base / Path(path).relative_to("/models/refilled")).is_file()


def test_kubernetes_runs_the_same_server_as_docker(base):
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((base / "server/kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    script = (base / "server/docker_run.sh").read_text()
    assert all(flag in script for flag in [container["image"], *container["args"]])
    assert container["image"] == f"tensorflow/serving:{tf.__version__}"
    assert container["volumeMounts"][0]["mountPath"] == "/models/refilled"
    assert service["spec"]["selector"] == pod["metadata"]["labels"]


def test_files_of_a_server_are_a_persons_own_but_for_models_config(tmp_path):
    storage.write_text(tmp_path / "server/batching.config", "mine")
    server_files.write(tmp_path, server_files.label(ModelServerConfig(), [], 5))
    assert (tmp_path / "server/batching.config").read_text() == "mine"
    text = (tmp_path / "server/models.config").read_text()
    parsed = text_format.Parse(text, ModelServerConfig())
    assert parsed.model_config_list.config[0].version_labels["stable"] == 5


# The check.


def _upside_down(monkeypatch):
    right = signatures.decode_image
    monkeypatch.setattr(
        signatures, "decode_image", lambda *given: tf.image.flip_up_down(right(*given))
    )


def _without_variables(monkeypatch):
    monkeypatch.setattr(
        requests,
        "write_warmup",
        lambda folder, data: (folder / "variables/variables.index").unlink(),
    )


def _without_a_way_to_restore(monkeypatch):
    """Which `tf.saved_model.load` has no need of."""

    def spoil(folder, data):
        path = folder / "saved_model.pb"
        saved = SavedModel.FromString(path.read_bytes())
        saved.meta_graphs[0].ClearField("saver_def")
        path.write_bytes(saved.SerializeToString())

    monkeypatch.setattr(requests, "write_warmup", spoil)


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (_upside_down, "signature 'serving_default' differs from the network"),
        (_without_variables, "a fresh process cannot run the export"),
        (_without_a_way_to_restore, "a fresh process cannot run the export: RuntimeError"),
    ],
)
def test_wrong_export_fails_and_leaves_nothing(sabotage, message, model, tmp_path, monkeypatch):
    sabotage(monkeypatch)
    with pytest.raises(InputError, match=message):
        versions.publish(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([[b"b", b"a"]], 0.0),  # logits 1 and 3: b is the better one
        ([[b"a", b"b"]], 2.0),  # the wrong way round: off by their difference
        ([[b"b", b"c"]], np.nan),  # there is no c
        ([[b"b"]], np.inf),  # one name too few
    ],
)
def test_difference_of_names_is_that_of_their_logits(classes, expected):
    outputs = {"logits": np.array([[1.0, 3.0]]), "embedding": np.ones((1, 1))}
    found = check.differences({"classes": np.array(classes, object)}, outputs, ("a", "b"))
    np.testing.assert_equal(found, {"classes": expected})
    assert (found["classes"] <= check.TOLERANCE) == (expected == 0.0)


# Bad input.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("studnet", "--stage=studnet is not a stage here; there are student, teacher"),
        ("refilled", "--stage=refilled is not finished; finished classifiers here: student$"),
        ("triplet", "--stage=triplet is an embedding network"),
    ],
)
def test_stage_that_cannot_be_exported(name, message, work_dir):
    with pytest.raises(InputError, match=message):
        trained.load(work_dir, name, None)


def test_folder_that_is_no_trainings(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a training"):
        trained.load(tmp_path, None, None)


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ({"teacher", "student", "refilled", "vanilla"}, "refilled"),
        ({"teacher", "triplet", "student", "vanilla"}, "vanilla"),
        ({"teacher", "student"}, "student"),
    ],
)
def test_stage_of_choice(finished, expected, tmp_path):
    # From the flag's help: "refilled", else the last classifier of the student's task.
    known = digits.experiment(tmp_path).stages()
    known = [each for each in known if each.name in finished]
    assert trained.choose_stage(known, finished, None).name == expected


def test_teacher_alone_is_not_exported_unasked(tmp_path):
    known = digits.experiment(tmp_path).stages()
    with pytest.raises(InputError, match="no classifier of the student's task is finished"):
        trained.choose_stage(known, {"teacher", "triplet"}, None)
    assert trained.choose_stage(known, {"teacher"}, "teacher").name == "teacher"


def test_models_config_that_is_none_is_not_overwritten(model, tmp_path, unchecked):
    storage.write_text(tmp_path / "server/models.config", "model_config_list [")
    with pytest.raises(InputError, match=r"models\.config is not a ModelServerConfig"):
        versions.publish(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_export_dir_below_a_file(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder that can be written"):
        versions.publish(model, tmp_path / "file/base")


def test_what_a_server_is_told_must_have_its_folder(model, tmp_path, unchecked):
    """Before a version is there that no server would be told of."""
    (tmp_path / "server").touch()
    with pytest.raises(InputError, match="server is not a folder that can be written"):
        versions.publish(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_command_ends_with_one_line_on_bad_input(work_dir, tmp_path):
    (tmp_path / "file").touch()
    run = commands.run(
        "export.saved_model", f"--work_dir={work_dir}", f"--export_dir={tmp_path / 'file'}"
    )
    assert run.returncode == 1
    file = tmp_path / "file"
    message = f"error: --export_dir={file}: {file} is not a folder that can be written\n"
    assert run.stderr == message
