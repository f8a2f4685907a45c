"""A manifest for Kubeflow: python -m export.kubeflow --gin_file=… --workers=4 --image=… --claim=….

Writes a TFJob that trains an experiment on several machines, for `kubectl apply -f`. Worker 0 is
the one that writes, so there is no Chief beside them, and the job is done when that worker is.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from absl import flags

from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import require

FLAGS = flags.FLAGS

# Pods are called NAME-worker-NUMBER, and may be called by 63 characters.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CORES = re.compile(r"\d+m|\d+(\.\d+)?")
_MEMORY = re.compile(r"\d+(\.\d+)?([KMGT]i|[kMGT])?")


class _Dumper(yaml.SafeDumper):
    """Also quotes the strings that Kubernetes's YAML takes for numbers, and Python's does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.\d*)?[eE][-+]?\d+|0o[0-7_]+)"),
    list("-+0123456789"),
)
_HEAD = """\
# kubectl apply -f {output}
# Made by: {command}
"""


def check(argv: list[str]) -> None:
    """Rejects what is no experiment, and what Kubernetes would not take."""
    no_arguments(argv)
    require(bool(FLAGS.gin_file), "--gin_file is missing, such as --gin_file=gin/cub_easy.gin")
    gin_files.check_names(FLAGS.gin_file, FLAGS.gin_param)
    for option, pattern, wanted in (
        ("claim", _CLAIM, "lower-case letters, digits, '-' and '.', such as trainings"),
        ("cpu", _CORES, "cores, such as 4, 0.5 or 500m"),
        ("memory", _MEMORY, "bytes, such as 16Gi or 500M"),
    ):
        value = getattr(FLAGS, option)
        require(pattern.fullmatch(value) is not None, f"--{option}={value} must be {wanted}")
    name = job_name()
    require(
        _NAME.fullmatch(name) is not None,
        f"--name={name} must be at most 50 lower-case letters, digits and '-', a letter first",
    )
    require(
        re.fullmatch(r"\S+", FLAGS.image) is not None,
        f"--image={FLAGS.image!r} must be the name of an image, such as registry/refilled_tf:0.1",
    )
    mount, work_dir = PurePosixPath(FLAGS.mount), PurePosixPath(FLAGS.work_dir)
    require(
        mount.is_absolute() and ":" not in FLAGS.mount,
        f"--mount={mount} must be a path from the root, without ':', such as /shared",
    )
    require(
        mount in work_dir.parents and ".." not in work_dir.parts,
        f"--work_dir={work_dir} must lie beneath --mount={mount}, which all workers share",
    )
    storage.require_writable("--output", Path(FLAGS.output).parent)
    require(not Path(FLAGS.output).is_dir(), f"--output={FLAGS.output} is a folder")


def job_name() -> str:
    """Returns the name of the job."""
    if FLAGS.name is not None:
        return FLAGS.name
    stem = Path(FLAGS.gin_file[0]).stem.lower()
    return re.sub("[^a-z0-9]+", "-", stem).strip("-")


def training() -> list[str]:
    """Returns the command that every worker runs."""
    command = ["python", "-m", "refilled_tf.train"]
    command += [f"--gin_file={file}" for file in FLAGS.gin_file]
    command += [f"--gin_param={param}" for param in FLAGS.gin_param]
    if FLAGS.workers > 1:  # a TFJob tells a single worker of no cluster
        command.append("--gin_param=Experiment.strategy = 'multi_worker'")
    command.append(f"--work_dir={FLAGS.work_dir}")
    if FLAGS.data_dir:
        command.append(f"--data_dir={FLAGS.data_dir}")
    return command


def manifest() -> dict[str, Any]:
    """Returns the TFJob that the flags describe."""
    gpus = {"nvidia.com/gpu": FLAGS.gpus} if FLAGS.gpus else {}
    requests = {"cpu": FLAGS.cpu, "memory": FLAGS.memory}
    container = {
        "name": "tensorflow",  # by which the operator finds it
        "image": FLAGS.image,
        # Kubernetes puts variables in for $(NAME), and reads $$ as $.
        "command": [word.replace("$", "$$") for word in training()],
        "resources": {"requests": requests, **({"limits": gpus} if gpus else {})},
        "volumeMounts": [{"name": "shared", "mountPath": FLAGS.mount}],
    }
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": FLAGS.claim}}
    # Istio's side car would keep the pods from finding each other.
    metadata = {"annotations": {"sidecar.istio.io/inject": "false"}}
    worker = {
        "replicas": FLAGS.workers,
        # Who has lost another worker is started again, who was given bad input is not.
        "restartPolicy": "ExitCode",
        "template": {
            "metadata": metadata,
            "spec": {"containers": [container], "volumes": [volume]},
        },
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": job_name()},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running"},
            "tfReplicaSpecs": {"Worker": worker},
        },
    }


def main(_: list[str]) -> None:
    """Writes the manifest that the flags describe."""
    output = Path(FLAGS.output)
    command = " ".join(command_line("export.kubeflow").splitlines())
    head = _HEAD.format(output=shlex.quote(output.name), command=command)
    body = yaml.dump(manifest(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    storage.write_text(output, head + body)
    print(f"{job_name()}: {FLAGS.workers} workers, in {output}")


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_multi_string(
        "gin_file", [], "As refilled_tf.train takes it; must be in the image."
    )
    flags.DEFINE_multi_string("gin_param", [], "As refilled_tf.train takes it.")
    flags.DEFINE_integer("workers", 2, "How many machines train together.", lower_bound=1)
    flags.DEFINE_integer("gpus", 1, "NVIDIA GPUs of each.", lower_bound=0)
    flags.DEFINE_string("cpu", "4", "Cores that each asks for.")
    flags.DEFINE_string("memory", "16Gi", "Memory that each asks for.")
    flags.DEFINE_string("image", None, "The container image that has refilled_tf.", required=True)
    flags.DEFINE_string("claim", None, "The PersistentVolumeClaim that all share.", required=True)
    flags.DEFINE_string("mount", "/shared", "Where the claim is mounted.")
    flags.DEFINE_string("work_dir", None, "Where results go, beneath --mount.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    flags.DEFINE_string("name", None, "Of the job; the first gin file's if unset.")
    flags.DEFINE_string("output", "tfjob.yaml", "The file to write.")
    run_main(main, check)
