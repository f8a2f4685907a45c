"""Files that TensorFlow Serving needs beside the versions: BASE/server/.

models.config      which versions to serve, and their labels "stable" and "canary"
batching.config    how requests that arrive together would be joined, if the server is told to
docker_run.sh      the server on this machine
kubernetes.yaml    the server in a cluster

The folder's name is not a number, so a server that watches BASE takes it for no version. Only
models.config changes from version to version: an export moves the label "canary", and "stable"
stays where it is until a person edits it. The other files are written once and are a person's own
from then on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import string
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import filelock
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import MODEL_NAME
from refilled_tf.common import storage
from refilled_tf.common.errors import InputError, require

FOLDER = "server"
MODELS = "models.config"
BATCHING_NAME = "batching.config"
# Released with this package, and of TensorFlow's version.
IMAGE = f"tensorflow/serving:{metadata.version('tensorflow-serving-api')}"
MOUNT = f"/models/{MODEL_NAME}"  # where the server finds BASE
FLAGS = (
    f"--model_config_file={MOUNT}/{FOLDER}/{MODELS}",
    # A new version is taken up, and a label moved, while the server runs.
    "--model_config_file_poll_wait_seconds=30",
    # Else a server refuses to start with labels, since no version is loaded yet.
    "--allow_version_labels_for_unavailable_models=true",
)

MODELS_HEAD = f"""\
# To release a canary, give the label "stable" its number; a running server reads this file again.
# /v1/models/{MODEL_NAME}/labels/stable:predict asks the one, …/labels/canary:predict the other.
"""

BATCHING = f"""\
# How requests that arrive together are joined: always by export.serve, by TensorFlow Serving with
#   --enable_batching=true --batching_parameters_file={MOUNT}/{FOLDER}/{BATCHING_NAME}
# Two things then no longer hold there, and do in export.serve:
# - serving_support cannot be used. The server refuses it where support and queries differ in
#   number; where they do not, it joins several callers' tasks, and answers one with the other's
#   classes.
# - A request does not fail alone: one image that cannot be decoded fails the whole batch that it is
#   in. Where callers are not to be trusted, have their images checked before.
max_batch_size {{ value: 32 }}
batch_timeout_micros {{ value: 2000 }}  # export.serve waits only while it is at work anyway
max_enqueued_batches {{ value: 10 }}  # more than these are refused at once
num_batch_threads {{ value: 2 }}  # at most as many as the server has cores
"""

DOCKER = string.Template("""\
#!/bin/sh
# Serves REST on port 8501, gRPC on port 8500.
base=$$(cd "$$(dirname "$$0")/.." && pwd) || exit
docker run --rm -p 8500:8500 -p 8501:8501 \\
  --mount "type=bind,source=$$base,target=$mount,readonly" \\
  $image \\
  $flags
""")

KUBERNETES = string.Template("""\
# kubectl apply -f kubernetes.yaml
# The exports, this folder included, must lie in a volume with the claim $model-models.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: $model
spec:
  replicas: 2
  selector:
    matchLabels: {app: $model}
  template:
    metadata:
      labels: {app: $model}
    spec:
      containers:
      - name: serving
        image: $image
        args:
        - $flags
        ports:
        - {name: grpc, containerPort: 8500}
        - {name: rest, containerPort: 8501}
        # Answers with an error until the version is loaded and warm.
        readinessProbe:
          httpGet: {path: /v1/models/$model/labels/stable/metadata, port: rest}
        resources:
          requests: {cpu: "1", memory: 1Gi}
        volumeMounts:
        - {name: models, mountPath: $mount, readOnly: true}
      volumes:
      - name: models
        persistentVolumeClaim: {claimName: $model-models, readOnly: true}
---
apiVersion: v1
kind: Service
metadata:
  name: $model
spec:
  selector: {app: $model}
  ports:
  - {name: grpc, port: 8500, targetPort: grpc}
  - {name: rest, port: 8501, targetPort: rest}
""")


def read_models(base: Path) -> ModelServerConfig:
    """Reads models.config.

    Args:
        base: the folder of the versions.

    Returns:
        Its content, or an empty message where there is none yet.

    Raises:
        InputError: it is not readable as the server's configuration.
    """
    path = base / FOLDER / MODELS
    if not path.exists():
        return ModelServerConfig()
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelServerConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise InputError(
            f"{path} is not a ModelServerConfig: {str(error).splitlines()[0]}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Batching:
    """How requests are joined into batches; TensorFlow Serving's parameters of these names.

    Attributes:
        max_batch_size: images in a batch. A request that holds more is a batch by itself.
        batch_timeout_micros: how long a request waits for others to join it.
        max_enqueued_batches: how many batches may wait.
        num_batch_threads: batches at a time.
        allowed_batch_sizes: to which batches are filled up, ascending; none means any.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()

    @property
    def capacity(self) -> int:
        """The most requests that may wait; how much each holds is not known before it is read."""
        return self.max_batch_size * self.max_enqueued_batches

    def alone(self) -> Batching:
        """Returns the same without joining: every request is a batch, and as many may wait."""
        return dataclasses.replace(
            self,
            max_batch_size=1,
            max_enqueued_batches=self.capacity,
            allowed_batch_sizes=(),
        )


def read_batching(path: Path) -> Batching:
    """Reads a file of batching parameters.

    Args:
        path: of the file, such as BASE/server/batching.config; may be missing.

    Returns:
        Its content; what it does not say has its default.

    Raises:
        InputError: it is not readable as the server's parameters.
    """
    if not path.exists():
        return Batching()
    given = _batching_parameters()
    try:
        text = path.read_text(encoding="utf-8")
        text_format.Parse(text, given, allow_unknown_field=True)
    except (OSError, ValueError, text_format.ParseError) as error:
        message = f"{path} holds no batching parameters: {str(error).splitlines()[0]}"
        raise InputError(message) from error
    values = {field.name: value for field, value in given.ListFields()}
    sizes = tuple(values.pop("allowed_batch_sizes", ()))
    batching = Batching(
        **{name: value.value for name, value in values.items()}, allowed_batch_sizes=sizes
    )
    for name in WRAPPED:
        least = 0 if name == "batch_timeout_micros" else 1
        require(getattr(batching, name) >= least, f"{path}: {name} must be at least {least}")
    require(
        not sizes or (list(sizes) == sorted(set(sizes)) and sizes[0] > 0),
        f"{path}: allowed_batch_sizes must be positive and ascend, not {list(sizes)}",
    )
    require(
        not sizes or sizes[-1] == batching.max_batch_size,
        f"{path}: the last of allowed_batch_sizes must be max_batch_size={batching.max_batch_size}",
    )
    return batching


# Of the parameters, each in a message of its own: name { value: 1 }.
WRAPPED = (
    "max_batch_size",
    "batch_timeout_micros",
    "max_enqueued_batches",
    "num_batch_threads",
)


def _batching_parameters() -> Message:
    """Returns an empty BatchingParameters, which tensorflow-serving-api leaves out.

    Its fields have the names that count in a text; their numbers do not occur in one.
    """
    field = descriptor_pb2.FieldDescriptorProto
    wrapper = wrappers_pb2.Int64Value.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", syntax="proto3", dependency=[wrapper.file.name]
    )
    message = file.message_type.add(name="BatchingParameters")
    for number, name in enumerate(WRAPPED, 1):
        message.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
            type_name=f".{wrapper.full_name}",
        )  # fmt: skip
    message.field.add(
        name="allowed_batch_sizes", number=len(WRAPPED) + 1, type=field.TYPE_INT64,
        label=field.LABEL_REPEATED,
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrapper.file.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(message.name))()


def version_folders(base: Path) -> dict[int, Path]:
    """Returns the folders in BASE whose names are numbers of versions, as a server takes them.

    Leading zeros do not count. Of two folders of one number the last in the order of names is
    meant. What is no folder, or is no number of 64 bits, is none.
    """
    return {
        int(path.name): path
        for path in sorted(base.iterdir())
        if re.fullmatch("[0-9]+", path.name) and int(path.name) < 2**63 and path.is_dir()
    }


def label(models: ModelServerConfig, older: Collection[int], version: int) -> ModelServerConfig:
    """Returns the configuration with a new version as canary, and as stable if there is none.

    Args:
        models: the configuration so far; other models and settings in it stay.
        older: the versions that are there; labels of others are dropped.
        version: the new one.

    Returns:
        A configuration in which exactly the labelled versions of our model are served.
    """
    labelled = ModelServerConfig()
    labelled.CopyFrom(models)
    listed = labelled.model_config_list.config
    ours = next((model for model in listed if model.name == MODEL_NAME), None)
    if ours is None:
        ours = listed.add(name=MODEL_NAME, base_path=MOUNT, model_platform="tensorflow")
    kept = {name: number for name, number in ours.version_labels.items() if number in older}
    labels = {"stable": version} | kept | {"canary": version}
    ours.version_labels.clear()
    ours.version_labels.update(labels)
    ours.model_version_policy.specific.versions[:] = sorted(set(labels.values()))
    return labelled


def add(base: Path, versions: Collection[int], version: int) -> None:
    """Labels a version that is new in BASE, whatever else has been done to models.config meanwhile.

    Args:
        base: the folder of the versions.
        versions: those that are there.
        version: the new one.

    Raises:
        InputError: models.config cannot be read.
    """
    (base / FOLDER).mkdir(parents=True, exist_ok=True)
    # Two exports may end at the same time.
    with filelock.FileLock(base / FOLDER / f".{MODELS}.lock"):
        write(base, label(read_models(base), versions, version))


def write(base: Path, models: ModelServerConfig) -> None:
    """Writes models.config, and those of the other files that are not there.

    Args:
        base: the folder of the versions.
        models: what models.config shall say.
    """
    folder = base / FOLDER
    storage.write_text(folder / MODELS, MODELS_HEAD + text_format.MessageToString(models))
    facts = {"model": MODEL_NAME, "mount": MOUNT, "image": IMAGE}
    once = {
        BATCHING_NAME: BATCHING,
        "docker_run.sh": DOCKER.substitute(facts, flags=" \\\n  ".join(FLAGS)),
        "kubernetes.yaml": KUBERNETES.substitute(facts, flags="\n        - ".join(FLAGS)),
    }
    for name, text in once.items():
        if not (folder / name).exists():
            storage.write_text(folder / name, text)
