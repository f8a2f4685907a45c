"""Which versions are in memory, and which of them a request means."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from absl import logging
from tensorflow_serving.apis.get_model_status_pb2 import (
    GetModelStatusResponse,
    ModelVersionStatus,
)
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.status_pb2 import StatusProto

from export import MODEL_NAME, server_files
from export.serving.errors import Code, RequestError
from export.serving.model import Model
from refilled_tf.errors import require

State = ModelVersionStatus
Answer = TypeVar("Answer")


@dataclasses.dataclass
class Version:
    """A version that the server has been told of.

    Attributes:
        status: what a status request says of it.
        model: the version in memory, while it is there.
        calls: the requests that it is working on.
    """

    status: ModelVersionStatus
    model: Model | None = None
    calls: set[asyncio.Future] = dataclasses.field(default_factory=set)

    @property
    def available(self) -> bool:
        return self.status.state == State.AVAILABLE


class Manager:
    """Keeps the versions of a folder in memory. All but the models themselves is on the loop.

    A new version is loaded and warmed up beside the old ones, which go once it is there and their
    requests are answered. A version that cannot be loaded changes nothing. It is not tried
    again while it is there: versions appear as a whole, and what has failed would fail again.
    """

    def __init__(self, base: Path, name: str, max_batch_size: int, workers: int):
        """Starts with no version.

        Args:
            base: the folder of the versions.
            name: of the model in addresses.
            max_batch_size: the most examples or images that a request may hold.
            workers: how many requests are worked on at a time; others wait.
        """
        self._base = base
        self._name = name
        self._max_batch_size = max_batch_size
        self._pool = ThreadPoolExecutor(workers, "model")
        self._versions: dict[int, Version] = {}
        self._labels: dict[str, int] = {}
        self._wanted: set[int] = set()

    async def refresh(self) -> None:
        """Looks at the folder, and loads and unloads what has changed.

        Raises:
            InputError: there is no version, or models.config cannot be read.
        """
        wanted, labels = wanted_versions(self._base, self._name)
        new, self._wanted = sorted(wanted - self._wanted), wanted
        new = [number for number in new if not self._is_available(number)]
        for number in new:
            self._versions[number] = Version(
                State(version=number, state=State.START, status=StatusProto())
            )
        for number in new:
            await self._load(number)
        # A label stays where it is until its new version can answer.
        self._labels = {
            label: number if self._is_available(number) else self._labels.get(label, number)
            for label, number in labels.items()
        }
        if all(map(self._is_available, wanted)):
            for number in self.available() - wanted:
                await self._unload(number)

    async def watch(self, seconds: float) -> None:
        """Refreshes for ever, every so many seconds; what is wrong with the folder is logged."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except Exception as error:  # must not end the watch
                logging.log_every_n_seconds(logging.WARNING, "%s", 60, error)

    async def run(self, spec: ModelSpec, function: Callable[[Model], Answer]) -> Answer:
        """Runs a function of the model that a request means, in one of the threads.

        Args:
            spec: name and version of the model, or a label instead of the version; without either
                the latest version there is.
            function: is given the model; may take its time.

        Returns:
            What the function returns.

        Raises:
            RequestError: no such model is available, or the function says so.
        """
        version = self._meant(spec)
        call = asyncio.get_running_loop().run_in_executor(self._pool, function, version.model)
        version.calls.add(call)
        call.add_done_callback(version.calls.discard)
        # The thread goes on when the caller hangs up: until it has ended the version is in use.
        return await asyncio.shield(call)

    def status(self, spec: ModelSpec) -> GetModelStatusResponse:
        """Returns the state of one version, or of all that there have been.

        Args:
            spec: name of the model; may have a version or a label.

        Raises:
            RequestError: there is no such model, version or label.
        """
        if spec.name != self._name:
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
        """Ends what is still running and frees the memory."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for number in self.available():
            await asyncio.to_thread(self._versions[number].model.close)

    def _is_available(self, number: int) -> bool:
        return number in self._versions and self._versions[number].available

    def _meant(self, spec: ModelSpec) -> Version:
        number, available = self._number(spec), self.available()
        if spec.name != self._name or not available or number not in {None, *available}:
            meant = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {meant}")
        return self._versions[max(available) if number is None else number]

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

    async def _load(self, number: int) -> None:
        version = self._versions[number]
        version.status.state = State.LOADING
        folder = self._base / str(number)
        try:
            version.model = await asyncio.to_thread(Model, folder, self._name, self._max_batch_size)
        except Exception as error:  # as many kinds as a folder can be broken in
            logging.error("%s cannot be loaded: %s", folder, error)
            version.status.state = State.END
            version.status.status.error_code = Code.UNKNOWN.value[0]
            version.status.status.error_message = str(error)
        else:
            version.status.state = State.AVAILABLE

    async def _unload(self, number: int) -> None:
        version = self._versions[number]
        version.status.state = State.UNLOADING
        if version.calls:
            await asyncio.wait(version.calls)
        await asyncio.to_thread(version.model.close)
        version.model = None
        version.status.state = State.END


def wanted_versions(base: Path, name: str) -> tuple[set[int], dict[str, int]]:
    """Returns the versions to serve, and labels of versions.

    Args:
        base: the folder of the versions. Those that its server/models.config lists are wanted;
            without a list the latest is.
        name: of the model.

    Raises:
        InputError: there is no version, or models.config cannot be read.
    """
    require(base.is_dir(), f"--export_dir={base} is not a folder")
    there = {int(path.name) for path in base.iterdir() if path.name.isdecimal()}
    require(
        bool(there),
        f"--export_dir={base} holds no version; make one with python -m export.saved_model",
    )
    models = server_files.read_models(base).model_config_list.config
    by_name = {model.name: model for model in models}
    # Exports write MODEL_NAME; another one here is but another address.
    ours = by_name.get(name, by_name.get(MODEL_NAME))
    if ours is None:
        return {max(there)}, {}
    listed = there.intersection(ours.model_version_policy.specific.versions)
    return listed or {max(there)}, dict(ours.version_labels)
