"""Manifests for Kubeflow: what is in them, as a cluster would read it.

SCHEMA is what our manifests use of manifests/base/crds/kubeflow.org_tfjobs.yaml in Kubeflow's
training operator, with nothing else allowed: a field that Kubernetes does not know it drops, or
refuses. Pods' fields are Kubernetes's own; the pattern of quantities is the schema's.
"""

from __future__ import annotations

import commands
import jsonschema
import pytest
import yaml

from refilled_tf.common import cluster

TEXT = {"type": "string"}
WHOLE = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
QUANTITY = {
    "anyOf": [
        {"type": "integer"},
        {
            "type": "string",
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
            r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        },
    ]
}


def _fields(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _each(schema):
    return {"type": "object", "additionalProperties": schema}


def _list(schema):
    return {"type": "array", "items": schema}


CONTAINER = _fields(
    ["name"],
    name=TEXT,
    image=TEXT,
    command=_list(TEXT),
    resources=_fields(requests=_each(QUANTITY), limits=_each(QUANTITY)),
    volumeMounts=_list(_fields(["mountPath", "name"], mountPath=TEXT, name=TEXT)),
)
CLAIM = _fields(["claimName"], claimName=TEXT)
POD = _fields(
    ["containers"],
    containers=_list(CONTAINER),
    volumes=_list(_fields(["name"], name=TEXT, persistentVolumeClaim=CLAIM)),
)
REPLICAS = _fields(
    replicas=WHOLE,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template=_fields(metadata=_fields(annotations=_each(TEXT)), spec=POD),
)
SCHEMA = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "TFJob"},
    metadata=_fields(["name"], name=TEXT),
    spec=_fields(
        ["tfReplicaSpecs"],
        runPolicy=_fields(cleanPodPolicy={"enum": ["", "All", "Running", "None"]}),
        tfReplicaSpecs={
            "type": "object",
            "propertyNames": {"enum": ["PS", "Worker", "Chief", "Master", "Evaluator"]},
            "additionalProperties": REPLICAS,
        },
    ),
)
FLAGS = {
    "gin_file": "gin/cub_easy.gin",
    "image": "registry:5000/refilled_tf:0.1",
    "claim": "trainings",
    "work_dir": "/shared/runs/x",
}


def _run(folder, *more, **changes):
    flags = [f"--{name}={value}" for name, value in (FLAGS | changes).items()]
    output = folder / "tfjob.yaml"
    done = commands.run("export.kubeflow", *flags, *more, f"--output={output}")
    return done, output


def _manifest(folder, *more, **changes):
    done, output = _run(folder, *more, **changes)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(output.read_text())
    jsonschema.validate(read, SCHEMA)
    return read


def _worker(manifest):
    (name,) = manifest["spec"]["tfReplicaSpecs"]
    assert name == "Worker"
    worker = manifest["spec"]["tfReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    return worker, container


def test_four_workers_with_a_gpu_each(tmp_path):
    manifest = _manifest(tmp_path, workers=4, gpus=1, cpu="500m", memory="1.5Gi")
    assert manifest["metadata"]["name"] == "cub-easy"
    worker, container = _worker(manifest)
    assert worker["replicas"] == 4
    # As the operator's documentation names the container that it gives TF_CONFIG to.
    assert container["name"] == "tensorflow"
    assert container["command"] == [
        *("python", "-m", "refilled_tf.train", "--gin_file=gin/cub_easy.gin"),
        "--gin_param=Experiment.strategy = 'multi_worker'",
        "--work_dir=/shared/runs/x",
    ]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "1.5Gi"},
        "limits": {"nvidia.com/gpu": 1},
    }
    (mount,), (volume,) = container["volumeMounts"], worker["template"]["spec"]["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/shared"}
    assert volume["persistentVolumeClaim"] == {"claimName": "trainings"}


def test_a_lost_worker_is_started_again_and_bad_input_is_not(tmp_path):
    """The policy ExitCode starts again what has ended with 128 or more."""
    worker, _ = _worker(_manifest(tmp_path))
    assert worker["restartPolicy"] == "ExitCode"
    assert 128 <= cluster.LOST < 256


def test_one_worker_without_gpus_is_no_cluster(tmp_path):
    """The operator sets no TF_CONFIG where there is a single replica."""
    _, container = _worker(_manifest(tmp_path, workers=1, gpus=0))
    assert not [word for word in container["command"] if "multi_worker" in word]
    assert "limits" not in container["resources"]


def _as_kubernetes_reads(word):
    """Its rules: $$ is $, and $(NAME) is a variable's value."""
    read, rest = "", word
    while rest:
        here, _, after = rest.partition("$")
        read, rest = read + here, ""
        if after:
            assert after[0] == "$", f"a variable in {word}"
            read, rest = read + "$", after[1:]
    return read


def test_odd_names_come_through(tmp_path):
    odd = ['it: # "s" {x} é', "- $(HOME) $$ ${x}", " %s | > & * ! ?", "a\\tb", "true", "1\n2"]
    params = [f"--gin_param=Stage.method = {name!r}" for name in odd]
    params.append("--gin_param=Stage.seed = 1\nStage.method = 'x'")  # in the comment, too
    work_dir = '/shared/it\'s: a #"run"'
    manifest = _manifest(tmp_path, *params, work_dir=work_dir)
    words = [_as_kubernetes_reads(word) for word in _worker(manifest)[1]["command"]]
    assert words[4:-2] == params
    assert words[-1] == f"--work_dir={work_dir}"


@pytest.mark.parametrize("claim", ["1e3", "0o17"])
def test_names_that_look_like_numbers_are_quoted(tmp_path, claim):
    """Kubernetes's YAML reads them as numbers where Python's does not."""
    done, output = _run(tmp_path, claim=claim)
    assert done.returncode == 0, done.stderr
    assert f"claimName: '{claim}'\n" in output.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gin_file": "nowhere.gin"}, "--gin_file=nowhere.gin does not exist"),
        ({"gin_param": "Recipe.epoch = 3"}, "has no option 'epoch'; did you mean epochs"),
        ({"work_dir": "/runs/x"}, "--work_dir=/runs/x must lie beneath --mount=/shared"),
        ({"work_dir": "/shared/../x"}, "must lie beneath"),
        ({"mount": "shared"}, "--mount=shared must be a path from the root"),
        ({"claim": "My_Claim"}, "--claim=My_Claim must be lower-case letters"),
        ({"image": "a b"}, "--image='a b' must be the name of an image"),
        ({"memory": "16GB"}, "--memory=16GB must be bytes, such as 16Gi"),
        ({"cpu": "four"}, "--cpu=four must be cores"),
        ({"name": "9-lives"}, "--name=9-lives must be at most 50"),
        ({"name": "x" * 51}, "must be at most 50"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, changes, said):
    done, output = _run(tmp_path, **changes)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
