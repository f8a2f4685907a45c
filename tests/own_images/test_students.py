"""Students as a command line names them: what each becomes in gin, and what is refused."""

from __future__ import annotations

import pytest
import tiny

from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config
from refilled_tf.models.from_weights import FromWeights
from refilled_tf.models.mobilenet import MobileNetV2
from refilled_tf.own_images import students


def test_each_name_is_that_network():
    assert students.parse("MobileNetV2", 0.35) == MobileNetV2(0.35)
    pretrained = students.parse("MobileNetV2", 0.35, "imagenet")
    assert pretrained == FromWeights(MobileNetV2(0.35), "imagenet")


@pytest.mark.parametrize("weights", [None, "imagenet"])
@pytest.mark.parametrize("name", students.NETWORKS)
def test_gin_lines_give_the_same_student_to_all_but_the_teacher(name, weights, tmp_path):
    if weights and name == "EfficientNetLite0":
        weights = str(tmp_path / "net.keras")
        (tmp_path / "net.keras").touch()
    student = students.parse(name, 0.35, weights)
    names = ("student_kx", "refilled", "probe", "probe_pool")
    rows = f"Experiment.rows = [{', '.join(f'@{name}/Stage()' for name in names)}]"
    text = f"{tiny.GIN}include 'methods/probe.gin'\n{rows}\n"
    (tmp_path / "tiny.gin").write_text(text)
    spec = config.load_experiment([tmp_path / "tiny.gin"], students.gin_lines(student))
    stages = {stage.name: stage for stage in spec.stages()}
    for each in ("student_kx", "triplet", "refilled", "probe"):
        assert stages[each].backbone == student
    assert stages["teacher"].backbone == tiny.TinyNetwork()
    methods = ("Pretrained, fine-tuned", "Pretrained, distilled")
    methods = methods if weights else ("Student (k×)", "Probe")
    assert (stages["student_kx"].method, stages["probe"].method) == methods


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (("ResNet", 0.5), "--student=ResNet is none of what is accepted: MobileNet, MobileNetV2"),
        (("MobileNetV2", 0.0), r"--width=0\.0: MobileNetV2\.width=0\.0 must be positive"),
        (("MobileNet", 0.5, "none.keras"), "--student_weights=none.keras does not exist"),
    ],
)
def test_others_are_refused(what, message):
    with pytest.raises(InputError, match=message):
        students.parse(*what)


def test_the_width_of_trials_is_that_networks():
    lines = students.gin_lines(students.parse("MobileNetV2", 0.35))
    assert f"{students.width_option('MobileNetV2')} = 0.35" in lines


def test_networks_are_described_by_width():
    assert students.described(students.parse("MobileNetV2", 0.35)) == "MobileNetV2 of width 0.35"
    pretrained = students.parse("MobileNet", 0.25, "imagenet")
    assert students.described(pretrained) == "MobileNet of width 0.25, pretrained,"
    assert students.described(tiny.TinyNetwork()) == "TinyNetwork"
