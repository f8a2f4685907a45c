"""The versions in memory, and the one that a request means."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from absl import logging
from tensorflow_serving.apis.get_model_status_pb2 import (
    GetModelStatusResponse,
    ModelVersionStatus,
)
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.status_pb2 import StatusProto

from export import MODEL_NAME, server_files
from export.server_files import Batching
from export.serving.batching import Batcher, Call
from export.serving.errors import Code, RequestError
from export.serving.model import ONE_THREAD, Limits, Model, Threads
from refilled_tf.common.errors import InputError, require

State = ModelVersionStatus
Answer = TypeVar("Answer")
RETRY_SECONDS = 60.0  # as TensorFlow Serving


class Loaded(NamedTuple):
    """A model in memory, and what waits for it."""

    model: Model
    batcher: Batcher


@dataclasses.dataclass
class Version:
    """A version that the server has been told of.

    Attributes:
        folder: where it is.
        status: what a status request says of it.
        loaded: the version in memory, while it can be asked.
        tried: what the folder looked like when it was loaded, and when that was, in seconds.
    """

    folder: Path
    status: ModelVersionStatus
    loaded: Loaded | None = None
    tried: tuple[frozenset, float] = (frozenset(), 0.0)


class Wanted(NamedTuple):
    """The versions and labels that a folder asks to be served.

    Attributes:
        folders: of all versions that are there.
        choices: lists of versions; of each list the first that can be loaded is to be served.
        labels: of versions.
    """

    folders: dict[int, Path]
    choices: list[list[int]]
    labels: dict[str, int]


class Manager:
    """Keeps the versions of a folder in memory. All but the models themselves is on the loop.

    A new version is loaded and warmed up beside the old ones, which go once it is there and their
    requests are answered. A version that cannot be loaded changes nothing; it is tried again once
    its folder has changed, since it may have been copied there while it was looked at, or when some
    time has passed.
    """

    def __init__(
        self,
        base: Path,
        name: str,
        limits: Limits,
        batching: Batching,
        threads: Threads = ONE_THREAD,
    ):
        """Starts with no version.

        Args:
            base: the folder of the versions.
            name: of the model in addresses.
            limits: what a request may hold.
            batching: how requests are joined.
            threads: of TensorFlow.
        """
        self._base = base
        self.name = name
        self._limits = limits
        self._batching = batching
        self._threads = threads
        self._versions: dict[int, Version] = {}
        self._labels: dict[str, int] = {}

    async def refresh(self) -> None:
        """Looks at the folder, and loads and unloads what has changed.

        Raises:
            InputError: there is no version, or models.config cannot be read.
        """
        folders, choices, labels = wanted(self._base, self.name)
        served = set()
        for choice in choices:
            for number in choice:
                if await self._loaded(number, folders[number]):
                    served.add(number)
                    break
        # A label stays where it is until its new version can answer.
        self._labels = {
            label: number if self._is_available(number) else self._labels.get(label, number)
            for label, number in labels.items()
        }
        if len(served) == len(choices):
            for number in self.available() - served:
                await self._unload(number)

    async def watch(self, seconds: float) -> None:
        """Refreshes for ever, every so many seconds; what is wrong with the folder is logged."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except Exception as error:  # must not end the watch
                logging.warning("%s", error)

    async def run(self, spec: ModelSpec, read: Callable[[Model], Call[Answer]]) -> Answer:
        """Answers a request by the model that it means, when its turn comes.

        Args:
            spec: name and version of the model, or a label instead of the version; without either
                the latest version there is.
            read: makes a call for that model; may take its time.

        Returns:
            The call's answer.

        Raises:
            RequestError: no such model is available, too many requests are waiting, or the request
                cannot be answered.
        """
        loaded = self._meant(spec)
        return await loaded.batcher.answer(lambda: read(loaded.model))

    def model(self, spec: ModelSpec) -> Model:
        """Returns the model that a request means, for what takes no time.

        Raises:
            RequestError: no such model is available.
        """
        return self._meant(spec).model

    def status(self, spec: ModelSpec) -> GetModelStatusResponse:
        """Returns the state of one version, or of all that there have been.

        Args:
            spec: name of the model; may have a version or a label.

        Raises:
            RequestError: there is no such model, version or label.
        """
        if spec.name != self.name:
            raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        number = self._number(spec)
        if number is not None and number not in self._versions:
            raise RequestError(
                Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}"
            )
        numbers = sorted(self._versions, reverse=True) if number is None else [number]
        return GetModelStatusResponse(
            model_version_status=[self._versions[each].status for each in numbers]
        )

    def available(self) -> set[int]:
        """Returns the versions that can be asked."""
        return set(filter(self._is_available, self._versions))

    async def close(self) -> None:
        """Answers what is still waiting and frees the memory."""
        for number in self.available():
            await self._unload(number)

    def _is_available(self, number: int) -> bool:
        return number in self._versions and self._versions[number].loaded is not None

    def _meant(self, spec: ModelSpec) -> Loaded:
        number = self._number(spec)
        chosen = max(self.available(), default=-1) if number is None else number
        loaded = self._versions[chosen].loaded if chosen in self._versions else None
        if spec.name != self.name or loaded is None:
            meant = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {meant}")
        return loaded

    def _number(self, spec: ModelSpec) -> int | None:
        """Returns the version that is asked for; None where the request leaves it open."""
        if spec.HasField("version"):
            return spec.version.value
        if not spec.version_label:
            return None
        if spec.version_label not in self._labels:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"Unrecognized servable version label: {spec.version_label}; there are "
                f"{', '.join(sorted(self._labels)) or 'none'}",
            )
        return self._labels[spec.version_label]

    async def _loaded(self, number: int, folder: Path) -> bool:
        """Loads a version unless it is in memory; tells whether it is there now."""
        if self._is_available(number):
            return True
        now = time.monotonic()
        looks = await asyncio.to_thread(_looks, folder)
        if number in self._versions:
            seen, when = self._versions[number].tried
            failed = self._versions[number].status.status.error_code
            if failed and looks == seen and now < when + RETRY_SECONDS:
                return False
        status = State(version=number, state=State.LOADING, status=StatusProto())
        version = self._versions[number] = Version(folder, status, tried=(looks, now))
        sizes = self._batching.allowed_batch_sizes
        arguments = (folder, number, self.name, self._limits, sizes, self._threads)
        try:
            model = await asyncio.to_thread(Model, *arguments)
        except Exception as error:  # as many kinds as a folder can be broken in
            logging.error("%s cannot be loaded: %s", folder, error)
            status.state = State.END
            status.status.error_code = Code.UNKNOWN.value[0]
            status.status.error_message = str(error)
            return False
        batcher = Batcher(model.run, self._batching, self._limits.pixels, self.name)
        version.loaded = Loaded(model, batcher)
        status.state = State.AVAILABLE
        return True

    async def _unload(self, number: int) -> None:
        version = self._versions[number]
        loaded, version.loaded = version.loaded, None
        version.status.state = State.UNLOADING
        if loaded is not None:
            await asyncio.to_thread(loaded.batcher.close)
            await asyncio.to_thread(loaded.model.close)
        version.status.state = State.END


def wanted(base: Path, name: str) -> Wanted:
    """Reads a folder of versions.

    Args:
        base: the folder. Those versions that its server/models.config lists are wanted; without a
            list the latest that can be loaded is.
        name: of the model.

    Raises:
        InputError: there is no version, or models.config cannot be read.
    """
    require(base.is_dir(), f"--export_dir={base} is not a folder")
    try:
        folders = server_files.version_folders(base)
    except OSError as error:
        raise InputError(f"--export_dir={base} cannot be read: {error.strerror}") from error
    require(
        bool(folders),
        f"--export_dir={base} holds no version; make one with python -m export.saved_model",
    )
    latest = [sorted(folders, reverse=True)]
    models = server_files.read_models(base).model_config_list.config
    by_name = {model.name: model for model in models}
    # Exports write MODEL_NAME; another one here is but another address.
    ours = by_name.get(name, by_name.get(MODEL_NAME))
    if ours is None:
        return Wanted(folders, latest, {})
    listed = sorted(set(folders).intersection(ours.model_version_policy.specific.versions))
    return Wanted(folders, [[number] for number in listed] or latest, dict(ours.version_labels))


def _looks(folder: Path) -> frozenset:
    """Returns what tells whether anything was written into a folder since: names, sizes, times."""
    found = set()
    for path in folder.rglob("*"):
        try:
            about = path.stat()
        except OSError:  # gone meanwhile, or a link to nowhere
            continue
        found.add((str(path), about.st_size, about.st_mtime_ns))
    return frozenset(found)
