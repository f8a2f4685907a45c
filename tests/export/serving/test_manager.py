"""Versions that come and go."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import asking
import embedded
import grpc
import pytest
import requests as http
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
)
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import WARMUP, server_files
from export.serving.errors import RequestError
from export.serving.manager import wanted

pytestmark = pytest.mark.slow


def _break(base, number):
    """Adds a version of which only the graph is there."""
    folder = base / str(number)
    folder.with_name("copy").mkdir()
    shutil.copy(next(base.glob("*/saved_model.pb")), base / "copy")
    (base / "copy").rename(folder)


def _states(models):
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=asking.spec())
    statuses = models.GetModelStatus(request).model_version_status
    return {each.version: each.State.Name(each.state) for each in statuses}


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_version_changes_under_load_without_a_lost_request(version, tmp_path):
    asking.publish(version, tmp_path, 1)
    body = {"signature_name": "serving_bytes", "instances": [asking.PNG]}
    with (
        embedded.server(tmp_path, "--poll_seconds=0.1") as running,
        grpc.insecure_channel(running.grpc) as channel,
        ThreadPoolExecutor(4) as threads,
    ):
        predictions, models = PredictionServiceStub(channel), ModelServiceStub(channel)
        done = threading.Event()

        def ask_by_grpc(versions):
            while not done.is_set():
                response = predictions.Predict(asking.png_request(), timeout=30)
                versions.append(response.model_spec.version.value)

        def ask_by_rest(codes):
            url = f"{running.http}/v1/models/refilled:predict"
            while not done.is_set():
                codes.append(http.post(url, json=body, timeout=30).status_code)

        by_grpc, by_rest = ([], []), ([], [])
        callers = [threads.submit(ask_by_grpc, versions) for versions in by_grpc]
        callers += [threads.submit(ask_by_rest, codes) for codes in by_rest]
        try:
            _wait(lambda: all((*by_grpc, *by_rest)))
            asking.publish(version, tmp_path, 2)
            _wait(lambda: _states(models) == {1: "END", 2: "AVAILABLE"})
            _break(tmp_path, 3)
            _wait(lambda: _states(models) == {1: "END", 2: "AVAILABLE", 3: "END"})
            _wait(lambda: all(2 in versions for versions in by_grpc))
        finally:
            done.set()
        for each in callers:
            each.result()
        for versions in by_grpc:
            assert versions == sorted(versions)
            assert set(versions) == {1, 2}
        assert {code for codes in by_rest for code in codes} == {200}

        failed = http.get(f"{running.http}/v1/models/refilled/versions/3").json()
        (status,) = failed["model_version_status"]
        assert status["status"]["error_code"] == "UNKNOWN"
        assert "variables" in status["status"]["error_message"]
        request = asking.png_request(version={"value": 1})
        assert asking.refusal(predictions.Predict, request)[0] == "NOT_FOUND"


def _labelled(base, **labels):
    """Writes the models.config that a person would."""
    models = server_files.label(ModelServerConfig(), [], 1)
    (ours,) = models.model_config_list.config
    ours.version_labels.clear()
    ours.version_labels.update(labels)
    ours.model_version_policy.specific.versions[:] = set(labels.values())
    server_files.write(base, models)


def test_listed_versions_and_labels_are_served(version, tmp_path):
    for number in (1, 2, 3):
        asking.publish(version, tmp_path, number)
    _labelled(tmp_path, stable=1, canary=2)

    async def served(manager):
        async def number(**chosen):
            spec = asking.spec(**chosen)
            response = await manager.run(spec, lambda model: model.predict(asking.png_request()))
            return response.model_spec.version.value

        await manager.refresh()
        labels = {name: await number(version_label=name) for name in ("stable", "canary")}
        return manager.available(), await number(), labels

    async def story():
        manager = asking.manager(tmp_path)
        assert await served(manager) == ({1, 2}, 2, {"stable": 1, "canary": 2})
        _labelled(tmp_path, stable=2, canary=3)
        assert await served(manager) == ({2, 3}, 3, {"stable": 2, "canary": 3})
        # A canary that cannot be loaded leaves the label, and all versions, where they are.
        _break(tmp_path, 4)
        _labelled(tmp_path, stable=3, canary=4)
        assert await served(manager) == ({2, 3}, 3, {"stable": 3, "canary": 3})
        # Back to versions that were there before.
        _labelled(tmp_path, stable=1, canary=2)
        assert await served(manager) == ({1, 2}, 2, {"stable": 1, "canary": 2})
        await manager.close()

    asyncio.run(story())


def test_name_in_addresses_changes_no_version_and_no_label(version, tmp_path):
    for number in (1, 2):
        asking.publish(version, tmp_path, number)
    _labelled(tmp_path, stable=1)
    expected = ([[1]], {"stable": 1})
    assert wanted(tmp_path, "refilled")[1:] == expected
    assert wanted(tmp_path, "birds")[1:] == expected


def test_version_whose_warm_up_fails_is_not_taken(version, tmp_path):
    asking.publish(version, tmp_path, 1)
    with tf.io.TFRecordWriter(str(tmp_path / "1" / WARMUP)) as writer:
        writer.write(b"no log")

    async def story():
        manager = asking.manager(tmp_path)
        await manager.refresh()
        (status,) = manager.status(asking.spec()).model_version_status
        assert (status.state, manager.available()) == (status.END, set())
        with pytest.raises(
            RequestError, match=r"Servable not found for request: Latest\(refilled\)"
        ):
            await manager.run(asking.spec(), lambda model: None)

    asyncio.run(story())


def _half(version, folder):
    folder.mkdir()
    shutil.copy(version / "saved_model.pb", folder)


KINDS = {
    "leading zeros": lambda version, folder: shutil.copytree(version, folder / "0000012"),
    "empty": lambda version, folder: (folder / "12").mkdir(),
    "half": lambda version, folder: _half(version, folder / "12"),
    "broken": lambda version, folder: (
        shutil.copytree(version, folder / "12") / "saved_model.pb"
    ).write_bytes(b"broken"),
    "file": lambda version, folder: (folder / "12").touch(),
    "link to nowhere": lambda version, folder: (folder / "12").symlink_to(folder / "absent"),
    "no word": lambda version, folder: (folder / "notes").mkdir(),
    "negative": lambda version, folder: shutil.copytree(version, folder / "-12"),
    "no ASCII": lambda version, folder: shutil.copytree(version, folder / "١٢"),
    "64 bits": lambda version, folder: shutil.copytree(version, folder / str(2**63)),
    "20 digits": lambda version, folder: (folder / ("9" * 20)).mkdir(),
    "200 digits": lambda version, folder: (folder / ("9" * 200)).mkdir(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_of_all_kinds_hide_no_good_version(kind, version, tmp_path):
    asking.publish(version, tmp_path, 11)
    KINDS[kind](version, tmp_path)

    async def served():
        manager = asking.manager(tmp_path)
        await manager.refresh()
        available = manager.available()
        response = await manager.run(
            asking.spec(), lambda model: model.predict(asking.png_request())
        )
        await manager.close()
        return available, response.model_spec.version.value

    number = 12 if kind == "leading zeros" else 11
    assert asyncio.run(served()) == ({number}, number)


def test_half_copied_version_is_served_once_it_is_whole(version, tmp_path):
    asking.publish(version, tmp_path, 1)
    _half(version, tmp_path / "2")

    async def story():
        manager = asking.manager(tmp_path)
        await manager.refresh()
        assert manager.available() == {1}
        (failed, _) = manager.status(asking.spec()).model_version_status
        await manager.refresh()
        (again, _) = manager.status(asking.spec()).model_version_status
        assert again is not failed  # a copy
        assert again == failed  # not tried again while nothing has changed
        shutil.copytree(version, tmp_path / "2", dirs_exist_ok=True)
        await manager.refresh()
        assert manager.available() == {2}
        await manager.close()

    asyncio.run(story())


def test_failed_version_is_tried_again_after_a_minute(version, tmp_path, monkeypatch):
    """Its folder may be right, and the memory have been short."""
    asking.publish(version, tmp_path, 1)
    tries = []

    def fail(*args):
        tries.append(args)
        raise MemoryError

    async def story():
        manager = asking.manager(tmp_path)
        monkeypatch.setattr("export.serving.manager.Model", fail)
        await manager.refresh()
        await manager.refresh()
        assert len(tries) == 1
        monkeypatch.setattr("export.serving.manager.RETRY_SECONDS", 0)
        await manager.refresh()
        assert len(tries) == 2
        monkeypatch.undo()
        monkeypatch.setattr("export.serving.manager.RETRY_SECONDS", 0)
        await manager.refresh()
        assert manager.available() == {1}
        await manager.close()

    asyncio.run(story())


def test_folders_of_numbers(tmp_path):
    for name in ("7", "007", "08", "x", "9x", "1" * 20, str(2**63 - 1)):
        (tmp_path / name).mkdir()
    (tmp_path / "10").touch()
    folders = server_files.version_folders(tmp_path)
    # Of "007" and "7" the last in the order of names, as in TensorFlow Serving.
    assert folders == {
        7: tmp_path / "7",
        8: tmp_path / "08",
        2**63 - 1: tmp_path / str(2**63 - 1),
    }
