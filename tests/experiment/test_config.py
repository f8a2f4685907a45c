"""Every gin file of the project, its settings, and what happens to a mistake in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tensorflow as tf

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import TfdsSource
from refilled_tf.data.splits import (
    AlphabeticalHalves,
    RandomHalves,
    SharedClasses,
    SuperclassHalves,
)
from refilled_tf.experiment import config
from refilled_tf.models.efficientnet_lite import EfficientNetLite0
from refilled_tf.models.mobilenet import MobileNetV2, MobileNetV3Small
from refilled_tf.objectives.base import GlobalBatch

GIN = Path(__file__).resolve().parents[2] / "gin"
# What two experiments share: they leave the choice of the class split to them.
SHARED = {
    "cub.gin",
    "cub50.gin",
    "cub50_imagenet.gin",
    "cub50_species.gin",
    "cub50_pool.gin",
    "cifar100_cross.gin",
    "cifar100_cross_cpu.gin",
    "cifar100_pool_cpu.gin",
}
OVERLAY = "official_code.gin"
BENCHMARK = "optimizers/benchmark.gin"
EXPERIMENTS = sorted({path.name for path in GIN.glob("*.gin")} - SHARED - {OVERLAY})
QUICK = "digits_halves.gin"
STUDENTS = {
    "models/mobilenet_v2.gin": MobileNetV2(0.35),
    "models/mobilenet_v3_small.gin": MobileNetV3Small(0.5),
    "models/efficientnet_lite0.gin": EfficientNetLite0(0.35),
}
pytestmark = pytest.mark.usefixtures("named_files")


def _stages(*args):
    return {stage.name: stage for stage in config.load_experiment(*args).stages()}


# --- the project's files --------------------------------------------------------------------


def test_gin_holds_no_python():
    """With an __init__.py in it, `import gin` would find the folder instead of the library."""
    assert not list(GIN.rglob("*.py"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_loads_and_says_how_to_run_it(name):
    experiment = config.load_experiment([name])
    assert len(experiment.rows) >= 1
    first_line = (GIN / name).read_text(encoding="utf-8").splitlines()[0]
    assert f"--gin_file=gin/{name}" in first_line


def test_every_file_is_reached_by_an_experiment():
    """By `include`; others are overlays, which tests put over an experiment, or tables."""
    overlays = [OVERLAY, BENCHMARK, "data/example_files.gin", "models/pretrained_teacher.gin"]
    overlays += [*STUDENTS, "methods/pretrained_student.gin"]
    alone = [*EXPERIMENTS, *overlays, "methods/own_images.gin"]
    reached, queue = set(), [GIN / name for name in alone] + list((GIN / "tables").glob("*.gin"))
    while queue:
        file = queue.pop()
        reached.add(file)
        includes = re.findall(r"^include '(.*)'$", file.read_text(encoding="utf-8"), re.MULTILINE)
        queue += {GIN / include for include in includes} - reached
    assert reached == set(GIN.rglob("*.gin"))


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_file_lacks_only_its_class_split(name):
    with pytest.raises(InputError, match="class_split"):
        config.load_experiment([name])
    config.load_experiment([name], ["Data.class_split = @RandomHalves()"])


@pytest.mark.parametrize("file", STUDENTS)
def test_student_is_another_network_and_the_teacher_is_not(file):
    stages, before = _stages(["quickstart.gin", file]), _stages(["quickstart.gin"])
    assert {stages[name].backbone for name in ("student", "triplet", "refilled")} == {
        STUDENTS[file]
    }
    assert stages["teacher"] == before["teacher"]


def test_rows_of_a_pretrained_student_stand_beside_those_from_scratch(tmp_path):
    (tmp_path / "net.keras").touch()
    params = [
        f"student/FromWeights.weights = '{tmp_path}/net.keras'",
        "student/FromWeights.network = @student/MobileNetV2()",
        "student/MobileNetV2.width = 0.35",
    ]
    spec = config.load_experiment([QUICK, "methods/pretrained_student.gin"], params)
    stages, before = {stage.name: stage for stage in spec.stages()}, _stages([QUICK])
    assert stages["refilled"] == before["refilled"]
    for name in ("pretrained", "pretrained_triplet", "pretrained_refilled"):
        assert stages[name].backbone.network == MobileNetV2(0.35)
    assert stages["pretrained_refilled"].start == stages["pretrained_triplet"]
    for name, twin in (("pretrained", "student"), ("pretrained_refilled", "refilled")):
        assert stages[name].objective == before[twin].objective


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_operative_config_gives_the_same_experiment(name, tmp_path):
    first = config.load_experiment([name])
    (tmp_path / gin_files.OPERATIVE).write_text(config.operative_config(), encoding="utf-8")
    assert config.load_work_dir(tmp_path) == first


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_official_code_goes_over_any_experiment(name):
    """Its own values: github.com/njulus/REFILLED, Train.py and main.py of December 2020."""
    stages = {each.name: each for each in config.load_experiment([name, OVERLAY]).stages()}
    if "refilled" not in stages:
        return
    refilled, triplet = stages["refilled"], stages["triplet"]
    assert (refilled.recipe.embedding_rate, refilled.recipe.schedule) == (0.1, "steps")
    assert refilled.objective.centers == "global"
    assert (refilled.objective.weight, refilled.objective.decay) == (100.0, 0.0)
    assert (triplet.recipe.schedule, triplet.recipe.decay_factor) == ("cosine", 0.1)
    assert (triplet.objective.tau_teacher, triplet.objective.tau_student) == (4.0, 4.0)
    assert triplet.objective.fallback == "farthest"


def test_cub_easy_is_the_papers_protocol():
    """Section 2.1 of the paper's supplement: 200 epochs, batch 128, rate .1."""
    experiment = config.load_experiment(["cub_easy.gin"])
    stages = {stage.name: stage for stage in experiment.stages()}
    student, refilled, triplet = (stages[n] for n in ("student", "refilled", "triplet"))
    for stage in (student, refilled, triplet):
        recipe = stage.recipe
        assert (recipe.epochs, recipe.cycles, recipe.batch_size) == (200, 1, 128)
        assert (recipe.learning_rate, recipe.decay_factor) == (0.1, 0.2)
        assert recipe.milestones == (0.25, 0.5, 0.75)  # after 50, 100 and 150 of 200 epochs
        assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
        assert stage.task.role == "student"

    data = student.task.data
    assert (data.source.name, data.source.box) == ("caltech_birds2011", "bbox")
    assert data.train_fraction == 0.7
    assert isinstance(data.class_split, RandomHalves)
    assert data.num_classes is None
    assert student.task.holdout == 0.0  # reported numbers are those of the test images

    assert triplet.objective.relation == "triplet"
    assert triplet.objective.fallback == "skip"
    assert (triplet.objective.tau_teacher, triplet.objective.tau_student) == (2.0, 1.0)
    assert refilled.start == triplet
    assert (refilled.objective.weight, refilled.objective.decay) == (10.0, 0.05)
    assert refilled.objective.tau_student == 1.0
    assert stages["lkd"].objective.decay == 0.0
    assert stages["lkd"].objective.weight == 10.0
    assert stages["student_2x"].recipe.cycles == 2
    assert stages["refilled_0.1"].objective.gamma == 0.1
    assert stages["refilled_0.2"].objective.gamma == 0.2
    assert stages["tuple"].objective.relation == "tuple"
    assert stages["tuple"].objective.margin == 0.2
    tuned = stages["fine_tune"]
    assert (tuned.recipe.learning_rate, tuned.recipe.epochs) == (1e-4, 50)
    assert tuned.start == stages["teacher"]
    assert tuned.backbone == stages["teacher"].backbone

    assert stages["teacher"].backbone.width == 1.0
    assert stages["teacher"].task.role == "teacher"
    assert stages["teacher"].task.images_per_class is None
    rkd = stages["rkd_embedding"].objective
    assert (rkd.distance_weight, rkd.angle_weight) == (25.0, 50.0)


def test_standard_distillation_is_the_fields_benchmark():
    """github.com/HobbitLong/RepDistiller, scripts/run_cifar_distill.sh and its optimizer."""
    stages = _stages(["cifar100_wrn.gin", BENCHMARK])
    recipe = stages["student"].recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (240, 64, 0.05)
    # 150, 180 and 210 of 240 epochs.
    assert [share * recipe.epochs for share in recipe.milestones] == [150, 180, 210]
    assert (recipe.decay_factor, recipe.momentum, recipe.weight_decay) == (0.1, 0.9, 5e-4)
    kd = stages["kd"].objective
    assert (kd.cross_entropy_weight, kd.kd_weight, kd.temperature) == (0.1, 0.9, 4.0)
    weights = {"fitnet": 100.0, "at": 1000.0, "nst": 50.0, "vid": 1.0}
    for name, weight in weights.items():
        objective = stages[name].objective
        assert (objective.cross_entropy_weight, objective.kd_weight) == (1.0, 0.0)
        assert objective.method.weight == weight
    both = stages["kd_vid"].objective
    assert (both.cross_entropy_weight, both.kd_weight) == (1.0, 1.0)
    assert both.method == stages["vid"].objective.method
    for name in ("triplet", "refilled"):
        assert stages[name].objective.tau_teacher == 4.0
    assert stages["refilled"].start == stages["vanilla"].start == stages["triplet"]
    assert stages["student"].task.data.class_split == SharedClasses()
    assert _stages(["cub_standard_mobilenet.gin"])["student"].task.data.train_fraction is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cub_hard.gin", AlphabeticalHalves),
        ("cifar100_cross_easy.gin", RandomHalves),
        ("cifar100_cross_hard.gin", SuperclassHalves),
    ],
)
def test_class_split_fits_the_experiments_name(name, split):
    assert isinstance(_stages([name])["student"].task.data.class_split, split)


def test_cifar100_weight_and_padding():
    """Paper: λ = .02, so w_0 = 20; pad 4; the dataset's own split."""
    stages = _stages(["cifar100_cross_easy.gin"])
    assert stages["refilled"].objective.weight == 20.0
    data = stages["student"].task.data
    assert (data.pad, data.image_size, data.flip, data.train_fraction) == (4, 32, True, None)


def test_few_shot_is_the_papers_protocol():
    """Section 2.3 of the paper's supplement, Table 3; Bertinetto et al. (2019) for the classes."""
    experiment = config.load_experiment(["cifar_fs_few_shot.gin"])
    assert {row.shots for row in experiment.rows} == {1, 5, 10, 30}
    for row in experiment.rows:
        episodes = row.test.episodes
        assert (episodes.ways, episodes.queries, episodes.count) == (5, 15, 600)
        assert (row.test.task.role, row.validation.task.role) == ("student", "validation")
        # The whole network is among what validation chooses from; its first layer with weights.
        if row.method in (
            "Fine-Tune",
            "REFILLED, ResNet-12 teacher",
            "REFILLED, ConvNet-4 teacher",
        ):
            assert {each.first for each in row.learner.candidates()} >= {"logits", "block1_conv"}
    split = experiment.rows[0].test.task.data.class_split
    parts = (split.teacher, split.validation, split.student)
    assert [len(part) for part in parts] == [64, 16, 20]
    assert len(set().union(*parts)) == 100  # none is in two of them

    stages = {stage.name: stage for stage in experiment.stages()}
    assert {stage.task.role for stage in stages.values()} == {"teacher"}
    convnet, resnet = stages["convnet"], stages["resnet12"]
    assert (convnet.backbone.channels, convnet.backbone.pooling) == (64, "max")
    assert resnet.backbone.widths == (64, 160, 320, 640)
    for stage in (convnet, resnet, stages["triplet_resnet12"]):
        assert (stage.recipe.batch_size, stage.recipe.epochs) == (128, 200)
    assert stages["triplet_resnet12"].teacher == resnet
    assert stages["triplet_convnet"].teacher == convnet
    assert stages["triplet_resnet12"].backbone == convnet.backbone
    for name in ("protonet", "feat"):
        assert stages[name].start == convnet
        assert stages[name].selection.protocol == experiment.rows[0].validation
    maml, inner = stages["maml"].objective, stages["maml"].selection.learner
    assert (maml.inner_steps, maml.inner_rate) == (5, 0.01)
    assert (inner.steps, inner.learning_rate) == (10, 0.01)


# --- single settings ------------------------------------------------------------------------


def test_width_of_the_student_alone():
    before = _stages(["cub_easy.gin"])
    after = _stages(["cub_easy.gin"], ["student/MobileNet.width = 0.5"])
    assert after["student"].backbone.width == after["triplet"].backbone.width == 0.5
    assert after["teacher"] == before["teacher"]
    assert after["fine_tune"].backbone == before["fine_tune"].backbone


def test_seed_of_every_stage():
    assert {stage.seed for stage in _stages([QUICK], ["Stage.seed = 3"]).values()} == {3}


def test_epochs_but_where_a_stage_has_its_own():
    stages = _stages(["cub_easy.gin"], ["Recipe.epochs = 4"])
    assert stages["student"].recipe.epochs == stages["teacher"].recipe.epochs == 4
    assert stages["fine_tune"].recipe.epochs == 50


def test_later_setting_wins():
    stages = _stages([QUICK], ["Recipe.epochs = 4", "Recipe.epochs = 5"])
    assert stages["student"].recipe.epochs == 5


def test_setting_that_is_longer_than_a_line():
    folder = "/data/" + 40 * "tfds/"
    params = [f"Experiment.data_dir = '{folder}'", f"Recipe.milestones = {[0.25] * 30}"]
    experiment = config.load_experiment([QUICK], params)
    assert experiment.data_dir == folder
    assert {stage.recipe.milestones for stage in experiment.stages()} == {(0.25,) * 30}


def test_rows():
    experiment = config.load_experiment([QUICK], ["Experiment.rows = [@refilled/Stage()]"])
    assert [row.name for row in experiment.rows] == ["refilled"]
    assert [stage.name for stage in experiment.stages()] == ["teacher", "triplet", "refilled"]


def test_loading_leaves_nothing_behind():
    first = config.load_experiment([QUICK])
    config.load_experiment(["cub_easy.gin"], ["Recipe.epochs = 4"])
    assert config.load_experiment([QUICK]) == first


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "culprit"),
    [
        ("Recip.epochs = 3", "'Recip'"),
        ("Recipe.epochz = 3", "'epochz'"),
        ("Data.source = @Nosuch()", "'@Nosuch()'"),
        ("studnt/MobileNet.width = .5", "studnt/MobileNet.width"),
        ("MobileNet.width = .3", "MobileNet.width"),  # teacher/ and student/ override it
        ("width = .5", "'width'"),
        ("Recipe.epochs", "Recipe.epochs"),
        ("Recipe.epochs = ", "Recipe.epochs"),
        ("Recipe.epochs = %epochs", "epochs/gin.macro"),
        ("include 'nope.gin'", "nope.gin"),
        ("Recipe.epochs = 0", "Recipe.epochs=0"),
        ("student/MobileNet.width = -1", "MobileNet.width=-1"),
        ("student/MobileNet.width = 'wide'", "'MobileNet' in scope 'student'"),
        ("Recipe.milestones = 3", "'Recipe'"),
        ("Experiment.rows = []", "Experiment.rows"),
        ("Stage.teacher = None", "Stage.teacher"),
        ("Experiment.rows = ['refilled']", "Experiment.rows = 'refilled'"),
        ("Experiment.rows = [@refilled/Stage]", "needs parentheses"),
        ("Data.class_split = @RandomHalves", "Data.class_split = 'RandomHalves'"),
        ("Data.source = 'cifar100'", "Data.source = 'cifar100'"),
        ("student/Stage.backbone = @MobileNet", "student/Stage.backbone = 'MobileNet'"),
    ],
)
def test_wrong_setting_is_named_in_one_line(param, culprit):
    with pytest.raises(InputError) as caught:
        config.load_experiment([QUICK], [param])
    message = str(caught.value)
    assert culprit in message
    assert "\n" not in message
    assert "<class" not in message


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("include 'nope.gin'", r"nope\.gin.*own\.gin"),
        ("Recipe.epochs = = 3", r"own\.gin, line 1.*Recipe\.epochs = = 3"),
        ("Recipe.seed = 1\n\nRecipe.epochs = 3", r"'seed'.*own\.gin.*line 1"),
        ("Recipe.epochs = 3", "'rows'"),
        ("Experiment.rows = [@student/Stage()]", "'name'.*'student'"),
    ],
)
def test_wrong_file_is_named_in_one_line(tmp_path, text, culprit):
    path = tmp_path / "own.gin"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        config.load_experiment([path])
    assert re.search(culprit, str(caught.value))
    assert "\n" not in str(caught.value)


def test_mistake_is_reported_once(tmp_path, capfd, caplog):
    """Not logged by gin as well."""
    path = tmp_path / "own.gin"
    path.write_text("include 'nope.gin'")
    with pytest.raises(InputError):
        config.load_experiment([path])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_missing_file_is_named():
    with pytest.raises(InputError, match=r"--gin_file=nope\.gin does not exist"):
        config.load_experiment(["nope.gin"])


def test_folder_without_a_training_is_named(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a training"):
        config.load_work_dir(tmp_path)


def test_own_file_includes_the_projects(tmp_path, monkeypatch):
    """As a user's file does, from any working directory, even one with a folder named data."""
    (tmp_path / "data").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.gin"
    path.write_text("include 'digits_halves.gin'\nRecipe.epochs = 7")
    assert _stages([path])["student"].recipe.epochs == 7


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (
            "Data.on_corrupt=skip",
            "skip is no number and has no quotes; Data.on_corrupt must be 'error' or 'skip'; type "
            """--gin_param='Data.on_corrupt = "skip"'""",
        ),
        (
            "teacher/Recipe.precision = float16",
            "teacher/Recipe.precision must be one of float32, mixed_float16, mixed_bfloat16; type "
            """--gin_param='teacher/Recipe.precision = "float32"'""",
        ),
        ("ImageFolder.folder=/my photos", """--gin_param='ImageFolder.folder = "/my photos"'"""),
        ("OnnxFile.layout=nchw", "OnnxFile.layout must be 'NCHW' or 'NHWC'"),
        ("Dat.on_corrupt=skip", "gin: Could not find Dat in"),
    ],
)
def test_word_without_quotes_is_told_how_to_type(param, message):
    """As a shell hands over --gin_param=Data.on_corrupt='skip'."""
    with pytest.raises(InputError, match=re.escape(message)):
        config.load_experiment(["quickstart.gin"], [param])


@pytest.mark.parametrize(
    "param", ["Data.train_fraction = None", "Recipe.nesterov=False", "Recipe.epochs = 3"]
)
def test_what_needs_no_quotes_is_taken(param):
    config.require_quotes([param])


def _blocks_of_extending():
    """Returns the language and the text of each block of code in docs/extending.md."""
    text = (GIN.parent / "docs/extending.md").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?\n)```", text, re.DOTALL)
    assert len(blocks) == 5
    return blocks


def test_sources_of_the_documents_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "import dataclasses, gin",
        "from refilled_tf.data.sources import Digits",
        "@gin.register",
        "@dataclasses.dataclass(frozen=True)",
        "class MySource(Digits):",
        "    file: str",
    )
    (tmp_path / "my_source.py").write_text("\n".join(code))
    *_, (_, own), (_, dataset) = _blocks_of_extending()
    sources = []
    for lines in (own, dataset):
        (tmp_path / "mine.gin").write_text(
            f"import my_source\ninclude 'digits_halves.gin'\n{lines}"
        )
        spec = config.load_experiment(["mine.gin"])
        sources += {stage.task.data.source for stage in spec.stages()}
    assert [getattr(each, "file", None) for each in sources] == ["FILE", None]
    splits = ("train", "validation", "test")
    assert sources[1] == TfdsSource("oxford_flowers102", splits, "file_name")


def test_method_of_the_documents_works(tmp_path, monkeypatch):
    """As docs/extending.md has it; its work_dir is loaded again by what it imports."""
    _, (kind, code), (_, row), *_ = _blocks_of_extending()
    assert kind == "python"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_method.py").write_text(code)
    (tmp_path / "mine.gin").write_text(row)
    spec = config.load_experiment(["mine.gin"], ["SameDistances.weight = 2.0"])
    (tmp_path / gin_files.OPERATIVE).write_text(config.operative_config())
    assert config.load_work_dir(tmp_path) == spec
    objective = spec.rows[1].start.objective
    # Orthogonal embeddings against equal ones: two of four inner products differ by 1.
    outputs = [{"embedding": tf.constant(x)} for x in ([[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]])]
    batch = GlobalBatch(tf.zeros([2], tf.int32), *outputs, fitted={}, epoch=tf.constant(0.0))
    loss, parts = objective(batch)
    assert (float(loss), float(parts["distances"])) == (1.0, 0.5)


def test_module_that_is_not_there_is_named(tmp_path):
    (tmp_path / "mine.gin").write_text("import of_mime\ninclude 'quickstart.gin'")
    with pytest.raises(InputError, match=r"^gin: No module named 'of_mime' \(In file .*line 1"):
        config.load_experiment([tmp_path / "mine.gin"])
