"""What TensorFlow Serving needs beside the versions: BASE/server/.

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

import string
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import MODEL_NAME
from refilled_tf import storage
from refilled_tf.errors import InputError

FOLDER = "server"
MODELS = "models.config"
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

# Off unless asked for: the server knows no way to exempt one signature from it.
BATCHING = f"""\
# To have requests that arrive together joined, give the server
#   --enable_batching=true --batching_parameters_file={MOUNT}/{FOLDER}/batching.config
# Two things then no longer hold:
# - serving_support cannot be used. The server refuses it where support and queries differ in
#   number; where they do not, it joins several callers' tasks, and answers one with the other's
#   classes.
# - A request does not fail alone: one image that cannot be decoded fails the whole batch that it is
#   in. Where callers are not to be trusted, have their images checked before.
max_batch_size {{ value: 32 }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 4 }}  # as many as the server has cores
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
        "batching.config": BATCHING,
        "docker_run.sh": DOCKER.substitute(facts, flags=" \\\n  ".join(FLAGS)),
        "kubernetes.yaml": KUBERNETES.substitute(facts, flags="\n        - ".join(FLAGS)),
    }
    for name, text in once.items():
        if not (folder / name).exists():
            storage.write_text(folder / name, text)
