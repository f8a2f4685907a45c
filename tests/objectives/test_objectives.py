"""What every objective adds up, and what a train step does with it.

The losses themselves are tested in tests/losses; here they are the parts, put together by hand.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics.pairwise import cosine_similarity

from refilled_tf.common.errors import InputError
from refilled_tf.losses.attention import attention_transfer
from refilled_tf.losses.distances import l2_normalize, pairwise_distances
from refilled_tf.losses.fitnet import hint
from refilled_tf.losses.kd import kd
from refilled_tf.losses.local import local_kl
from refilled_tf.losses.nst import neuron_selectivity
from refilled_tf.losses.rkd import rkd_angle, rkd_distance
from refilled_tf.losses.triplets import nearest_neighbors, triplet_kl
from refilled_tf.losses.tuples import tuple_kl
from refilled_tf.losses.vid import gaussian_nll
from refilled_tf.models import networks
from refilled_tf.objectives.attention import AttentionTransfer
from refilled_tf.objectives.base import GlobalBatch, Learner, Objective, TeacherEmbeddings
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.fitnet import FitNet
from refilled_tf.objectives.joint import JointDistillation
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.nst import NeuronSelectivity
from refilled_tf.objectives.probe_distillation import ProbeDistillation
from refilled_tf.objectives.regression import EmbeddingRegression
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.objectives.rkd import RelationalDistillation
from refilled_tf.objectives.similarity import SimilarityDistillation
from refilled_tf.objectives.vid import VariationalInformation

EPOCH = 3
LABELS = np.array([0, 1, 2, 0, 1, 2, 4, 4], np.int32)
ROWS = np.arange(8, dtype=np.int32)
RANDOM = np.random.default_rng(0)
STUDENT = RANDOM.normal(size=(8, 6)).astype(np.float32)
TEACHER = RANDOM.normal(size=(8, 7)).astype(np.float32)
LOGITS = RANDOM.normal(size=(8, 5)).astype(np.float32)
CENTERS = RANDOM.normal(size=(5, 7)).astype(np.float32)
TEACHER_LOGITS = RANDOM.normal(size=(8, 5)).astype(np.float32)


def _features(channels):
    names = ("f1", "f2", "f3")
    return {n: RANDOM.normal(size=(8, 3, 2, channels)).astype(np.float32) for n in names}


STUDENT_FEATURES, TEACHER_FEATURES = _features(4), _features(5)


@pytest.fixture(autouse=True)
def _float32():
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def _evaluate(objective, fitted=None, adapted=None):
    student = {"embedding": tf.constant(STUDENT)}
    if objective.classifies:
        student["logits"] = tf.constant(LOGITS)
    teacher = {"embedding": tf.constant(TEACHER)} if objective.needs_teacher else {}
    if objective.shares_classes:
        teacher["logits"] = tf.constant(TEACHER_LOGITS)
    for name in objective.features:
        student[name] = tf.constant(STUDENT_FEATURES[name])
        teacher[name] = tf.constant(TEACHER_FEATURES[name])
    epoch = tf.constant(float(EPOCH))
    batch = GlobalBatch(tf.constant(LABELS), student, teacher, fitted or {}, epoch, adapted or {})
    loss, parts = objective(batch)
    assert tuple(parts) == objective.parts
    return float(loss), {name: float(value) for name, value in parts.items()}


def _numpy_cross_entropy():
    logits = LOGITS.astype(np.float64)
    log_sums = [np.log(sum(np.exp(x) for x in row)) for row in logits]
    return np.mean([s - row[y] for s, row, y in zip(log_sums, logits, LABELS, strict=True)])


ACCURACY = np.mean([max(range(5), key=row.__getitem__) for row in LOGITS] == LABELS)


def test_cross_entropy():
    loss, parts = _evaluate(CrossEntropy())
    assert loss == pytest.approx(_numpy_cross_entropy(), rel=1e-6)
    assert parts["train_accuracy"] == pytest.approx(ACCURACY)


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
def test_triplets(fallback):
    kl, count = triplet_kl(
        STUDENT, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, fallback=fallback
    )
    loss, parts = _evaluate(
        RelationshipMatching(weight=7.0, tau_teacher=3.0, tau_student=1.5, fallback=fallback)
    )
    assert loss == pytest.approx(7 * float(kl), rel=1e-6)
    assert parts == pytest.approx({"relation_kl": float(kl), "num_relations": float(count)})
    assert loss > 0


def test_tuples():
    kl, count = tuple_kl(STUDENT, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, margin=0.3)
    loss, parts = _evaluate(
        RelationshipMatching(
            relation="tuple", weight=7.0, tau_teacher=3.0, tau_student=1.5, margin=0.3
        )
    )
    assert loss == pytest.approx(7 * float(kl), rel=1e-6)
    assert parts == pytest.approx({"relation_kl": float(kl), "num_relations": float(count)})
    assert loss > 0


@pytest.mark.parametrize("centers", ["batch", "global"])
def test_local_distillation(centers):
    # Eq. 6: CE + w_0 · exp(-.05 · 3) · KL in epoch 3.
    fixed = tf.constant(CENTERS) if centers == "global" else None
    kl = float(local_kl(LOGITS, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, centers=fixed))
    weight = 20 * np.exp(-0.15)
    loss, parts = _evaluate(
        LocalDistillation(weight=20.0, tau_teacher=3.0, tau_student=1.5, centers=centers),
        {} if fixed is None else {"centers": fixed},
    )
    assert loss == pytest.approx(_numpy_cross_entropy() + weight * kl, rel=1e-6)
    assert parts == pytest.approx(
        {
            "cross_entropy": _numpy_cross_entropy(),
            "local_kl": kl,
            "local_weight": weight,
            "train_accuracy": ACCURACY,
        }
    )


def test_lkd_does_not_decay():
    # Its w_e is w_0 in every epoch.
    _, parts = _evaluate(LocalDistillation(weight=20.0, decay=0.0))
    assert parts["local_weight"] == 20.0


def test_rkd():
    distance, angle = float(rkd_distance(STUDENT, TEACHER)), float(rkd_angle(STUDENT, TEACHER))
    loss, parts = _evaluate(RelationalDistillation(distance_weight=3.0, angle_weight=5.0))
    assert loss == pytest.approx(3 * distance + 5 * angle, rel=1e-6)
    assert parts == pytest.approx({"rkd_distance": distance, "rkd_angle": angle})


def test_joint_distillation():
    # Eq. 9: γ · stage 1 + CE + w_e · KL.
    stage_1, stage_2 = RelationshipMatching(weight=7.0), LocalDistillation(weight=20.0)
    embedding, _ = triplet_kl(STUDENT, TEACHER, LABELS)
    local = float(local_kl(LOGITS, TEACHER, LABELS))
    loss, _ = _evaluate(JointDistillation(stage_1, stage_2, gamma=0.2))
    expected = 0.2 * 7 * float(embedding) + _numpy_cross_entropy()
    assert loss == pytest.approx(expected + 20 * np.exp(-0.15) * local, rel=1e-6)


# ---- standard distillation ----------------------------------------------------------------


def test_kd():
    soft = float(kd(LOGITS, TEACHER_LOGITS, 3.0))
    loss, parts = _evaluate(Distillation(cross_entropy_weight=0.1, kd_weight=0.9, temperature=3.0))
    assert loss == pytest.approx(0.1 * _numpy_cross_entropy() + 0.9 * soft, rel=1e-6)
    assert parts == pytest.approx(
        {"cross_entropy": _numpy_cross_entropy(), "kd": soft, "train_accuracy": ACCURACY}
    )


def test_method_beside_cross_entropy_and_kd():
    # RKD in one stage: r · CE + a · KD + (25 · distances + 50 · angles).
    soft, method = float(kd(LOGITS, TEACHER_LOGITS, 4.0)), RelationalDistillation()
    own_loss, own_parts = _evaluate(method)
    loss, parts = _evaluate(Distillation(method, cross_entropy_weight=0.2, kd_weight=0.3))
    assert loss == pytest.approx(0.2 * _numpy_cross_entropy() + 0.3 * soft + own_loss, rel=1e-6)
    assert own_parts.items() < parts.items()


@pytest.mark.parametrize(
    ("method", "loss_of"),
    [
        (AttentionTransfer(weight=3.0), attention_transfer),
        (NeuronSelectivity(weight=3.0), neuron_selectivity),
        (AttentionTransfer(weight=3.0, layers=("f2",)), attention_transfer),
    ],
)
def test_features_are_summed_over_layers(method, loss_of):
    wanted = sum(float(loss_of(STUDENT_FEATURES[n], TEACHER_FEATURES[n])) for n in method.layers)
    loss, parts = _evaluate(method)
    assert loss == pytest.approx(3 * wanted, rel=1e-6)
    assert parts == pytest.approx({method.parts[0]: wanted})
    assert _evaluate(Distillation(method))[0] == pytest.approx(_numpy_cross_entropy() + loss)


def _shapes(features):
    return {name: (None, *x.shape[1:]) for name, x in features.items()}


def _adapter(method):
    student, teacher = (_shapes(f) for f in (STUDENT_FEATURES, TEACHER_FEATURES))
    return method.adapter({name: student[name] for name in method.features}, teacher)


def test_fitnet_compares_after_a_regressor():
    method = FitNet(weight=3.0)
    adapter = _adapter(method)
    # One 1×1 convolution from 4 to 5 channels, and a batch norm.
    shapes = [tuple(w.shape) for w in adapter.trainable_weights]
    assert shapes == [(1, 1, 4, 5), (5,), (5,)]
    kernel = adapter.get_weights()[0][0, 0]
    regressed = STUDENT_FEATURES["f2"] @ kernel
    regressed -= regressed.mean(axis=(0, 1, 2))
    regressed = np.maximum(regressed / np.sqrt(regressed.var(axis=(0, 1, 2)) + 1e-5), 0)
    adapted = adapter({"f2": STUDENT_FEATURES["f2"]}, training=True)
    np.testing.assert_allclose(adapted["f2"], regressed, atol=1e-5)

    wanted = float(hint(regressed, TEACHER_FEATURES["f2"]))
    loss, parts = _evaluate(method, adapted=adapted)
    assert loss == pytest.approx(3 * wanted, rel=1e-5)
    assert parts == pytest.approx({"hint": wanted}, rel=1e-5)


def test_variational_information_predicts_means_and_learns_variances():
    method = VariationalInformation(weight=3.0)
    adapter = _adapter(method)
    # For each layer, kernels from 4 to 5 to 5 to 5 channels and five variances.
    shapes = sorted(tuple(w.shape) for w in adapter.trainable_weights)
    assert shapes == sorted([(1, 1, 4, 5), (1, 1, 5, 5), (1, 1, 5, 5), (5,)] * 3)
    adapted = adapter(STUDENT_FEATURES, training=True)
    wanted = 0.0
    for name, features in STUDENT_FEATURES.items():
        np.testing.assert_allclose(adapted[f"{name}_variance"], [5.0] * 5, rtol=1e-6)
        first, second, third = _kernels(adapter, name)
        mean = np.maximum(np.maximum(features @ first, 0) @ second, 0) @ third
        np.testing.assert_allclose(adapted[name], mean, atol=1e-5)
        wanted += float(gaussian_nll(mean, [5.0] * 5, TEACHER_FEATURES[name]))
    loss, parts = _evaluate(method, adapted=adapted)
    assert loss == pytest.approx(3 * wanted, rel=1e-5)
    assert parts == pytest.approx({"variational": wanted}, rel=1e-5)


def _kernels(adapter, name):
    """The matrices of the convolutions that lie between an adapter's input and its output."""
    one = tf.keras.Model(adapter.input[name], adapter.output[name])
    return [w.numpy()[0, 0] for w in one.trainable_weights]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Distillation(), "distils nothing: set Distillation.method or kd_weight"),
        (lambda: Distillation(kd_weight=-0.5), "Distillation.kd_weight=-0.5 must be zero or more"),
        (lambda: Distillation(kd_weight=1.0, temperature=0.0), "Distillation.temperature=0.0"),
        (lambda: Distillation(CrossEntropy()), "Distillation.method=CrossEntropy() must be"),
        # What gin gives for @FitNet without its parentheses.
        (lambda: Distillation(FitNet), "such as @FitNet()"),
        (lambda: FitNet(layers="f2"), "FitNet.layers='f2' must be a tuple"),
        (lambda: NeuronSelectivity(layers=()), "NeuronSelectivity.layers=() must be a tuple"),
    ],
)
def test_what_cannot_be_distilled_is_refused(build, message):
    with pytest.raises(InputError) as caught:
        build()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "method", [FitNet, AttentionTransfer, NeuronSelectivity, VariationalInformation]
)
def test_features_of_other_sizes_are_refused_with_both_shapes(method):
    student, teacher = {"f3": (None, 8, 8, 16)}, {"f3": (None, 4, 8, 32)}
    with pytest.raises(InputError) as caught:
        Distillation(method(layers=("f3",))).adapter(student, teacher)
    message = "'f3' is 8×8×16 in the student and 4×8×32 in the teacher"
    assert message in str(caught.value)
    assert f"other {method.__name__}.layers" in str(caught.value)


# ---- with unlabelled images ----------------------------------------------------------------

PARTLY = np.where(np.arange(8) % 2, -1, LABELS).astype(np.int32)
KNOWN = np.flatnonzero(PARTLY >= 0)


def _pooled(objective, fitted, adapted=None):
    """Evaluates an objective on a batch of which every second image has no label."""
    student = {"embedding": tf.constant(STUDENT), "logits": tf.constant(LOGITS)}
    teacher = {"embedding": tf.constant(TEACHER)}
    rows = tf.constant(ROWS)
    batch = GlobalBatch(
        tf.constant(PARTLY), student, teacher, fitted, tf.constant(0.0), adapted or {}, rows=rows
    )
    loss, parts = objective(batch)
    assert tuple(parts) == objective.parts
    return float(loss), {name: float(value) for name, value in parts.items()}


def _cross_entropy_of_labelled():
    log_probabilities = log_softmax(LOGITS[KNOWN].astype(np.float64), axis=1)
    return -log_probabilities[np.arange(len(KNOWN)), PARTLY[KNOWN]].mean()


def test_labelled_part_of_a_batch():
    outputs = {"embedding": tf.constant(STUDENT)}
    batch = GlobalBatch(tf.constant(PARTLY), outputs, {}, {}, tf.constant(0.0), rows=ROWS)
    part = batch.labelled
    np.testing.assert_array_equal(part.labels, [0, 2, 1, 4])
    np.testing.assert_array_equal(part.student["embedding"], STUDENT[[0, 2, 4, 6]])
    np.testing.assert_array_equal(part.rows, [0, 2, 4, 6])


def test_probe_distillation():
    """r · CE of labelled images + a · T² · KL of all, each under its own fold's classifier."""
    weights = RANDOM.normal(size=(3, 7, 5)).astype(np.float32)
    bias = RANDOM.normal(size=(3, 5)).astype(np.float32)
    fold = np.array([0, 2, 1, 2, 0, 2, 1, 2])
    unit = TEACHER / np.linalg.norm(TEACHER, axis=1, keepdims=True)
    taught = softmax(
        [(x @ weights[f] + bias[f]) / 3 for x, f in zip(unit, fold, strict=True)], axis=1
    )
    kl = 9 * rel_entr(taught, softmax(LOGITS / 3, axis=1)).sum(axis=1).mean()
    loss, parts = _pooled(
        ProbeDistillation(cross_entropy_weight=0.5, weight=2.0, temperature=3.0),
        {"weights": tf.constant(weights), "bias": tf.constant(bias), "fold": tf.constant(fold)},
    )
    assert parts["cross_entropy"] == pytest.approx(_cross_entropy_of_labelled(), rel=1e-5)
    assert parts["probe_kl"] == pytest.approx(kl, rel=1e-4)
    assert loss == pytest.approx(0.5 * parts["cross_entropy"] + 2 * kl, rel=1e-4)


def test_several_probes_are_averaged():
    weights = RANDOM.normal(size=(2, 1, 7, 5)).astype(np.float32)
    fitted = {"fold": tf.zeros(8, tf.int32), "bias": tf.zeros((1, 5)), "bias_2": tf.zeros((1, 5))}
    fitted |= {"weights": tf.constant(weights[0]), "weights_2": tf.constant(weights[1])}
    unit = TEACHER / np.linalg.norm(TEACHER, axis=1, keepdims=True)
    taught = (softmax(unit @ weights[0, 0], axis=1) + 3 * softmax(unit @ weights[1, 0], axis=1)) / 4
    student = {"embedding": tf.constant(STUDENT), "logits": tf.constant(LOGITS)}
    teacher = {"embedding": tf.constant(TEACHER), "embedding_2": tf.constant(TEACHER)}
    batch = GlobalBatch(
        tf.constant(LABELS), student, teacher, fitted, tf.constant(0.0), rows=tf.constant(ROWS)
    )
    _, parts = ProbeDistillation(temperature=1.0, teacher_weights=[1.0, 3.0])(batch)
    kl = rel_entr(taught, softmax(LOGITS, axis=1)).sum(axis=1).mean()
    assert float(parts["probe_kl"]) == pytest.approx(kl, rel=1e-4)


def test_unlabelled_copy_of_a_labelled_image_is_judged_by_others():
    """Key "3" is there twice; what is not labelled is judged by the probe of all, the last one."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(2), 5).astype(np.int32)
    keys = np.array([*map(str, range(10)), "a", "3", "b"])
    embeddings = random.normal(size=(10, 1, 4)).astype(np.float32)
    known = TeacherEmbeddings(labels, keys, 2, 0, lambda views: [embeddings], None)
    found = ProbeDistillation().fit_teacher(known)
    assert found["weights"].shape == (6, 4, 2)
    assert set(found["fold"][:10]) == set(range(5))
    assert found["fold"][10:].tolist() == [5, found["fold"][3], 5]


def test_local_distillation_teaches_unlabelled_images_the_batchs_classes():
    """By hand: KL over the classes 0, 1, 2 and 4, which have labels here, of all eight images."""
    centers = CENTERS / np.linalg.norm(CENTERS, axis=1, keepdims=True)
    present = [0, 1, 2, 4]
    taught = softmax(TEACHER @ centers[present].T / 3, axis=1)
    kl = rel_entr(taught, softmax(LOGITS[:, present], axis=1)).sum(axis=1).mean()
    loss, parts = _pooled(
        LocalDistillation(weight=2.0, decay=0.0, tau_teacher=3.0, centers="global"),
        {"centers": tf.constant(centers)},
    )
    assert parts["local_kl"] == pytest.approx(kl, rel=1e-4)
    assert loss == pytest.approx(_cross_entropy_of_labelled() + 2 * kl, rel=1e-4)


def test_regression_is_twice_one_minus_the_cosine():
    projected = RANDOM.normal(size=(8, 7)).astype(np.float32)
    loss, parts = _pooled(
        EmbeddingRegression(weight=3.0), {}, {"embedding": tf.constant(projected)}
    )
    cosines = [cosine_similarity([a], [b]) for a, b in zip(projected, TEACHER, strict=True)]
    assert parts["squared_distance"] == pytest.approx(2 - 2 * np.mean(cosines), rel=1e-5)
    assert loss == pytest.approx(3 * parts["squared_distance"], rel=1e-6)


def test_neighbours_take_the_place_of_labels():
    nearest = nearest_neighbors(pairwise_distances(l2_normalize(TEACHER)), 2)
    kl, count = triplet_kl(STUDENT, TEACHER, nearest)
    loss, parts = _pooled(RelationshipMatching(weight=7.0, neighbors=2), {})
    assert parts == pytest.approx({"relation_kl": float(kl), "num_relations": float(count)})
    assert loss == pytest.approx(7 * float(kl), rel=1e-6)
    assert count > 0


# ---- the train step -----------------------------------------------------------------------

LAYERS = ("conv", "norm", "relu")  # of TinyNetwork
OBJECTIVES = {
    "cross-entropy": CrossEntropy(),
    "triplets": RelationshipMatching(weight=10.0),
    "tuples": RelationshipMatching(relation="tuple", weight=10.0, margin=0.5),
    "local, batch centres": LocalDistillation(),
    "local, global centres": LocalDistillation(centers="global"),
    "rkd": RelationalDistillation(),
    "joint": JointDistillation(RelationshipMatching(), LocalDistillation()),
    "kd": Distillation(cross_entropy_weight=0.1, kd_weight=0.9),
    "fitnet": Distillation(FitNet(layers=LAYERS)),
    "at": Distillation(AttentionTransfer(layers=LAYERS)),
    "nst": Distillation(NeuronSelectivity(layers=LAYERS)),
    "kd+vid": Distillation(VariationalInformation(layers=LAYERS), kd_weight=1.0),
    "rkd in one stage": Distillation(RelationalDistillation()),
    "probe": ProbeDistillation(views=0),
    "neighbours": RelationshipMatching(weight=10.0, neighbors=2),
    "similarities": SimilarityDistillation(bank=6, hidden=8),
    "regression": EmbeddingRegression(hidden=0),
}
# Between them, these hold every loss.
HALF_PRECISION = [
    *(
        (name, "mixed_float16")
        for name in ("tuples", "rkd", "joint", "fitnet", "at", "nst", "kd+vid")
    ),
    *((name, "mixed_bfloat16") for name in ("tuples", "rkd", "joint")),
]
IMAGES = RANDOM.uniform(0, 255, (8, 8, 8, 3)).astype(np.float32)


def _known(embeddings):
    """What objectives are told of a teacher whose embeddings [N, V, d] are these."""
    every_class = np.array([0, 1, 2, 0, 1, 2, 4, 3], np.int32)
    return TeacherEmbeddings(
        every_class,
        np.arange(len(every_class)).astype(str),
        5,
        0,
        lambda views: [embeddings[:, : 1 + views]],
        lambda count: [embeddings[:count, 0]],
    )


def _learner(objective, recipe=tiny.RECIPE, steps_per_epoch=1):
    tf.keras.utils.set_random_seed(0)
    tf.keras.mixed_precision.set_global_policy(recipe.precision)
    if objective.classifies:
        student = networks.classifier(tiny.TinyNetwork(), 8, 5)
    else:
        student = networks.embedding_network(tiny.TinyNetwork(), 8)
    teacher = None
    if objective.needs_teacher:
        classes = 5 if objective.shares_classes else 3
        teacher = networks.classifier(tiny.TinyNetwork(5), 8, classes)
    embeddings = RANDOM.normal(size=(len(LABELS), 1, 45)).astype(np.float32)
    fitted = objective.fit_teacher(_known(embeddings))
    learner = Learner(
        student,
        objective,
        teacher,
        fitted,
        recipe.weight_decay,
        steps_per_epoch,
        recipe.embedding_rate,
    )
    learner.compile(optimizer=recipe.optimizer(steps_per_epoch))
    return learner


def _fit(learner, steps, epochs=1):
    data = tf.data.Dataset.from_tensors((IMAGES, LABELS, ROWS)).repeat()
    return learner.fit(data, steps_per_epoch=steps, epochs=epochs, verbose=0).history


@pytest.mark.parametrize(
    ("name", "precision"), [(name, "float32") for name in OBJECTIVES] + HALF_PRECISION
)
def test_every_objective_trains(name, precision):
    objective = OBJECTIVES[name]
    learner = _learner(objective, dataclasses.replace(tiny.RECIPE, precision=precision))
    frozen = [w.copy() for w in learner.teacher.get_weights()] if learner.teacher else []
    before = _trained_weights(learner)
    # Stage 1 has no head: it trains an embedding, and nothing else.
    assert ("logits" in learner.student.output_names) == objective.classifies
    assert {dtype for dtype in _output_dtypes(learner.student)} == {tf.float32}

    # A loss scale that is too large for float16 is halved at every step, until it fits.
    history = _fit(learner, steps=12 if precision == "mixed_float16" else 3)
    assert set(history) == {"loss", *objective.parts, "weight_penalty"}
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][0] > 0
    assert all(isinstance(m, tf.keras.metrics.Mean) for m in learner.metrics)
    assert {m.dtype for m in learner.metrics} == {"float32"}
    # A frozen teacher keeps its weights and its batch norm's statistics; a student does not.
    after = _trained_weights(learner)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if learner.teacher:
        for a, b in zip(frozen, learner.teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def _output_dtypes(network):
    return [x.dtype for x in network(IMAGES).values()]


def _trained_weights(learner):
    """The student's weights and its adapter's, batch norm's statistics included."""
    adapter = learner.adapter.get_weights() if learner.adapter else []
    return learner.student.get_weights() + adapter


def test_weight_decays_with_the_optimizers_epochs():
    # Two steps an epoch. w_e = 10 · exp(-.05 · e), e = 0, 1, 2.
    learner = _learner(LocalDistillation(weight=10.0), steps_per_epoch=2)
    history = _fit(learner, steps=2, epochs=3)
    np.testing.assert_allclose(history["local_weight"], 10 * np.exp([0, -0.05, -0.1]), rtol=1e-6)


def test_weight_goes_on_from_restored_iterations():
    # A run that is resumed at step 8 of 2 a epoch is in epoch 4, whatever fit() has counted.
    learner = _learner(LocalDistillation(weight=10.0), steps_per_epoch=2)
    learner.optimizer.iterations.assign(8)
    history = _fit(learner, steps=2)
    np.testing.assert_allclose(history["local_weight"], [10 * np.exp(-0.2)], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class _Nothing(Objective):
    """Loss zero: what moves the weights is the penalty alone."""

    def __call__(self, batch):
        return 0.0 * tf.reduce_sum(batch.student["logits"]), {}


def test_penalty_shrinks_every_weight():
    # Gradient of ½·λ·‖w‖² is λ·w: one step of plain SGD leaves w · (1 - lr·λ).
    recipe = dataclasses.replace(
        tiny.RECIPE,
        learning_rate=0.5,
        milestones=(),
        momentum=0.0,
        nesterov=False,
        weight_decay=0.25,
    )
    learner = _learner(_Nothing(), recipe)
    before = [w.numpy() for w in learner.student.trainable_variables]
    penalty = 0.5 * 0.25 * sum(np.sum(np.square(w, dtype=np.float64)) for w in before)
    history = _fit(learner, steps=1)
    for w, now in zip(before, learner.student.trainable_variables, strict=True):
        np.testing.assert_allclose(now, w * (1 - 0.5 * 0.25), rtol=1e-6)
    assert history["weight_penalty"] == pytest.approx([penalty], rel=1e-6)
    assert history["loss"] == [0.0]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_layers_below_the_top_one_may_learn_more_slowly(precision):
    # The same with momentum m: after two steps w - lr·(g₁ + m·g₁ + g₂), with g = λ·w and the
    # rate lr of the top layer, a tenth of it below.
    recipe = dataclasses.replace(
        tiny.RECIPE,
        learning_rate=0.5,
        embedding_rate=0.1,
        milestones=(),
        momentum=0.5,
        nesterov=False,
        weight_decay=0.25,
        precision=precision,
    )
    learner = _learner(_Nothing(), recipe)
    before = {w.name: w.numpy() for w in learner.student.trainable_variables}
    _fit(learner, steps=2)
    for w in learner.student.trainable_variables:
        rate = 0.5 if w.name.startswith("logits") else 0.05
        once = before[w.name] * (1 - rate * 0.25)
        twice = once - rate * 0.25 * (0.5 * before[w.name] + once)
        np.testing.assert_allclose(w, twice, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class _Linear(Objective):
    """Loss Σ logits: its gradient for the head's bias is the batch size, at any weights."""

    def __call__(self, batch):
        return tf.reduce_sum(batch.student["logits"]), {}


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_accumulates_the_penalty_as_in_torch(nesterov):
    # torch.optim.SGD: g = ∇ + λ·w; v = m·v + g; w -= lr · (g + m·v if nesterov else v).
    # Decoupled decay, such as SGDW or Keras's weight_decay, would leave λ·w out of v.
    rate, momentum, decay = 0.01, 0.9, 0.3
    recipe = dataclasses.replace(
        tiny.RECIPE,
        learning_rate=rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        milestones=(),
    )
    learner = _learner(_Linear(), recipe)
    bias = learner.student.get_layer("logits").bias
    bias.assign([1.0, -2.0, 3.0, 0.5, 0.0])
    w, v = bias.numpy().astype(np.float64), np.zeros(5)
    for _ in range(3):
        g = len(IMAGES) + decay * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
    _fit(learner, steps=3)
    np.testing.assert_allclose(bias, w, rtol=1e-5)


# ---- features -----------------------------------------------------------------------------

PLAIN_SGD = dataclasses.replace(
    tiny.RECIPE, milestones=(), momentum=0.0, nesterov=False, weight_decay=0.0
)


@pytest.mark.parametrize(
    "method", [FitNet, AttentionTransfer, NeuronSelectivity, VariationalInformation]
)
def test_features_teach_the_layers_below_them_and_the_adapter_alone(method):
    # Without cross-entropy and weight decay, only the method's own loss moves anything.
    objective = Distillation(method(layers=("conv",)), cross_entropy_weight=0.0)
    learner = _learner(objective, PLAIN_SGD)
    taught = learner.student.get_layer("conv").trainable_variables
    taught = taught + (learner.adapter.trainable_variables if learner.adapter else [])
    before = [w.numpy() for w in taught]
    top = learner.student.get_layer("logits").get_weights()
    history = _fit(learner, steps=4, epochs=5)
    assert all(not np.array_equal(a, b) for a, b in zip(before, taught, strict=True))
    for a, b in zip(top, learner.student.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    (name,) = method.parts
    assert history[name][-1] < history[name][0]


@pytest.mark.parametrize("method", [FitNet, VariationalInformation])
def test_weight_decay_applies_to_the_adapter(method):
    # With weight 0 nothing but the penalty moves it: one step leaves w · (1 - lr·λ).
    recipe = dataclasses.replace(PLAIN_SGD, learning_rate=0.5, weight_decay=0.25)
    learner = _learner(Distillation(method(weight=0.0, layers=LAYERS)), recipe)
    before = [w.numpy() for w in learner.trainable_variables]
    adapter = [w.numpy() for w in learner.adapter.trainable_variables]
    history = _fit(learner, steps=1)
    penalty = 0.5 * 0.25 * sum(np.sum(np.square(w, dtype=np.float64)) for w in before)
    assert history["weight_penalty"] == pytest.approx([penalty], rel=1e-6)
    for w, now in zip(adapter, learner.adapter.trainable_variables, strict=True):
        np.testing.assert_allclose(now, w * (1 - 0.5 * 0.25), rtol=1e-6)


def test_variances_move_towards_the_mean_squared_errors():
    # α -= lr · ∂/∂α of ½ · mean(e/σ² + log σ²), with e a channel's mean squared error and
    # ∂σ²/∂α = sigmoid(α): up where e > σ², down where e < σ².
    rate = 100.0
    recipe = dataclasses.replace(PLAIN_SGD, learning_rate=rate)
    learner = _learner(Distillation(VariationalInformation(layers=("conv",))), recipe)
    conv = learner.teacher.get_layer("conv")
    conv.set_weights([conv.get_weights()[0] * np.float32([0.1, 0.1, 10, 10, 10])])
    (alpha,) = [w for w in learner.adapter.trainable_variables if w.shape.rank == 1]
    batch = learner.global_batch(tf.constant(IMAGES), tf.constant(LABELS), ROWS, training=True)
    errors = np.mean(np.square(batch.adapted["conv"] - batch.teacher["conv"]), axis=(0, 1, 2))
    assert set(errors > 5) == {True, False}

    first = alpha.numpy().astype(np.float64)
    slopes = 0.5 * (1 / 5 - errors / 25) / len(errors) / (1 + np.exp(-first))
    _fit(learner, steps=1)
    np.testing.assert_allclose(alpha, first - rate * slopes, rtol=1e-4)
    moved = learner.adapter({"conv": batch.student["conv"]})["conv_variance"]
    assert (np.sign(moved - 5.0) == np.sign(errors - 5.0)).all()
