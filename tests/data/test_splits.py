"""Class and instance splits on the facts of CUB: 200 classes and their numbers of images."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from refilled_tf.common.errors import InputError
from refilled_tf.data import splits

# Images of each class of CUB-200-2011, counted in its own image_class_labels.txt.
CUB_COUNTS = [
    *(60, 60, 58, 60, 44, 41, 53, 48, 59, 60, 60, 56, 60, 60, 58, 58, 57, 45, 59, 59),
    *(60, 56, 59, 52, 60, 60, 60, 59, 60, 60, 60, 53, 59, 59, 60, 60, 59, 60, 59, 60),
    *(60, 60, 59, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 58, 60, 59),
    *(60, 60, 60, 60, 50, 60, 60, 60, 60, 60, 60, 60, 60, 60, 57, 60, 60, 59, 60, 60),
    *(60, 60, 60, 53, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 59, 60, 60, 60),
    *(50, 60, 60, 60, 49, 60, 59, 60, 60, 60, 60, 60, 50, 60, 59, 60, 59, 60, 59, 60),
    *(60, 60, 60, 59, 59, 59, 60, 60, 60, 60, 60, 60, 60, 60, 59, 60, 60, 60, 60, 60),
    *(58, 60, 60, 60, 60, 60, 60, 60, 59, 60, 51, 60, 59, 60, 60, 60, 59, 60, 60, 59),
    *(60, 60, 60, 60, 60, 59, 60, 59, 59, 60, 60, 60, 60, 60, 60, 60, 60, 56, 59, 60),
    *(59, 60, 60, 60, 60, 60, 50, 60, 60, 58, 60, 60, 60, 60, 60, 59, 60, 60, 60, 60),
]
NAMES = tuple(f"class {c:03d}" for c in range(200))
LABELS = np.repeat(np.arange(200), CUB_COUNTS)
KEYS = np.array([f"{c}_{i}" for c, n in enumerate(CUB_COUNTS) for i in range(n)])
EASY_FIRST = (0, 1, 2, 5, 6, 8, 10, 13, 16, 17)
EASY_HASH = "ac0a72d1e858aa85"
PARTS_HASH = "4b0c94c2ae9a14dd"
TRAINING_FIRST = ["0_0", "0_1", "0_3", "0_4", "0_7", "0_8"]
TRAINING_HASH = "a408f6bb02cd2e15"


def test_counts_are_those_of_cub():
    assert len(CUB_COUNTS) == 200
    assert sum(CUB_COUNTS) == 11788  # as its README says


# --- classes --------------------------------------------------------------------------------


def test_hard_split_is_first_and_last_hundred():
    split = splits.AlphabeticalHalves()(NAMES)
    assert split == splits.ClassSplit(tuple(range(100)), tuple(range(100, 200)))


@pytest.mark.parametrize(
    "make",
    [splits.AlphabeticalHalves(), splits.RandomHalves(), splits.RandomHalves(seed=7)],
    ids=repr,
)
def test_halves_are_disjoint_complete_and_ascending(make):
    split = make(NAMES)
    assert len(split.teacher) == len(split.student) == 100
    assert sorted(split.teacher + split.student) == list(range(200))
    assert list(split.teacher) == sorted(split.teacher)
    assert list(split.student) == sorted(split.student)
    splits.check_class_split(split, NAMES)


def test_odd_number_of_classes_leaves_none_out():
    for make in (splits.AlphabeticalHalves(), splits.RandomHalves()):
        split = make(NAMES[:5])
        assert sorted(split.teacher + split.student) == [0, 1, 2, 3, 4]


def test_easy_split_depends_on_its_seed_alone():
    assert splits.RandomHalves(3)(NAMES) == splits.RandomHalves(3)(NAMES)
    assert splits.RandomHalves(3)(NAMES) != splits.RandomHalves(4)(NAMES)
    # It mixes the alphabet: by chance alone a half has 50 ± 3.5 of the first hundred.
    assert 30 < sum(c < 100 for c in splits.RandomHalves(3)(NAMES).teacher) < 70


def test_easy_split_never_changes():
    """Pinned on first writing: published numbers hold only for these very classes."""
    split = splits.RandomHalves(0)(NAMES)
    assert split.teacher[:10] == EASY_FIRST
    assert _hash(split.teacher) == EASY_HASH


def test_random_parts_are_disjoint_and_of_their_sizes():
    split = splits.RandomParts(100, 50, 50, seed=3)(NAMES)
    parts = (split.teacher, split.student, split.validation)
    assert [len(part) for part in parts] == [100, 50, 50]
    assert sorted(sum(parts, ())) == list(range(200))
    assert all(list(part) == sorted(part) for part in parts)
    splits.check_class_split(split, NAMES)
    assert split == splits.RandomParts(100, 50, 50, seed=3)(NAMES)
    assert split != splits.RandomParts(100, 50, 50, seed=4)(NAMES)
    # By chance alone, each part has as much of the first hundred as of the last: here 25 ± 3.1.
    assert 12 < sum(c < 100 for c in split.validation) < 38


def test_random_parts_may_leave_classes_out():
    split = splits.RandomParts(4, 3, 2)(NAMES[:20])
    assert len({*split.teacher, *split.student, *split.validation}) == 9
    assert splits.RandomParts(4, 3, 0)(NAMES[:7]).validation == ()


def test_random_parts_never_change():
    """Pinned on first writing, as the easy split is."""
    split = splits.RandomParts(100, 50, 50)(NAMES)
    assert _hash(split.teacher + split.student + split.validation) == PARTS_HASH


def test_random_parts_beyond_the_data_are_named():
    with pytest.raises(InputError) as caught:
        splits.RandomParts(100, 50, 51)(NAMES)
    assert str(caught.value) == (
        "RandomParts.teacher=100, RandomParts.student=50 and RandomParts.validation=51 are 201 "
        "classes, but the dataset has 200"
    )


def test_random_parts_are_not_negative():
    with pytest.raises(InputError, match=r"RandomParts\.validation=-1 must not be negative"):
        splits.RandomParts(100, 50, -1)


def test_superclass_halves_share_no_superclass():
    superclasses = tuple(c % 20 for c in range(100))
    split = splits.SuperclassHalves(seed=1)(NAMES[:100], superclasses)
    teacher, student = ({superclasses[c] for c in side} for side in (split.teacher, split.student))
    assert len(teacher) == len(student) == 10
    assert not teacher & student
    assert sorted(split.teacher + split.student) == list(range(100))
    assert split != splits.SuperclassHalves(seed=2)(NAMES[:100], superclasses)


def test_superclass_halves_of_cifar100(cifar100_index):
    # CIFAR-100 has 20 superclasses of 5 classes each.
    superclasses = np.array(cifar100_index.superclasses)
    np.testing.assert_array_equal(np.bincount(superclasses), np.full(20, 5))
    split = splits.SuperclassHalves()(cifar100_index.class_names, cifar100_index.superclasses)
    assert len(split.teacher) == len(split.student) == 50
    assert not set(superclasses[list(split.teacher)]) & set(superclasses[list(split.student)])
    # Known members: both are "aquatic mammals", so they stand on one side.
    ids = {name: i for i, name in enumerate(cifar100_index.class_names)}
    assert (ids["dolphin"] in split.teacher) == (ids["whale"] in split.teacher)


def test_superclass_halves_need_superclasses():
    with pytest.raises(InputError, match=r"SuperclassHalves.*TfdsSource\.superclass"):
        splits.SuperclassHalves()(NAMES, None)


def test_listed_superclasses_bring_all_their_classes():
    listed = splits.ListedSuperclasses(teacher=[7, 0], student=[3], validation=[1])
    split = listed(NAMES[:7], (3, 0, 7, 7, 1, 3, 5))  # nobody has the 5
    assert split == splits.ClassSplit((1, 2, 3), (0, 5), (4,))


def test_listed_superclasses_need_superclasses():
    with pytest.raises(InputError, match=r"ListedSuperclasses.*TfdsSource\.superclass"):
        splits.ListedSuperclasses((0,), (1,))(NAMES, None)


@pytest.mark.parametrize("role", ["teacher", "student", "validation"])
def test_listed_superclass_that_does_not_exist_is_named(role):
    listed = splits.ListedSuperclasses(**{"teacher": (0,), "student": (1,), role: (1, 20)})
    with pytest.raises(InputError, match=r"ListedSuperclasses names \[20\].*are 0, 1, 4"):
        listed(NAMES[:4], (0, 1, 1, 4))


def test_listed_classes_are_looked_up_by_name():
    listed = splits.ListedClasses(teacher=["d", "a"], student=["c", "b"])
    assert listed(("a", "b", "c", "d")) == splits.ClassSplit((0, 3), (1, 2))
    listed = splits.ListedClasses(["d", "a"], ["c", "b"], validation=["f", "e"])
    assert listed(tuple("abcdef")) == splits.ClassSplit((0, 3), (1, 2), (4, 5))


def test_listed_class_that_does_not_exist_is_named():
    listed = splits.ListedClasses(teacher=("a", "crow"), student=("b", "c"))
    with pytest.raises(InputError, match=r"'crow'.*a, b, c"):
        listed(("a", "b", "c"))
    listed = splits.ListedClasses(teacher=("a", "b"), student=("b", "c"), validation=("rook",))
    with pytest.raises(InputError, match=r"'rook'.*a, b, c"):
        listed(("a", "b", "c"))


def test_class_listed_twice_is_named():
    listed = splits.ListedClasses(teacher=("a", "b"), student=("c", "c", "d"))
    with pytest.raises(InputError, match=r"ListedClasses names \['c'\] twice"):
        listed(("a", "b", "c", "d"))


def test_overlap_is_refused_by_name():
    split = splits.ListedClasses(("a", "b"), ("b", "c"))(("a", "b", "c"))
    with pytest.raises(InputError, match="both have b;"):
        splits.check_class_split(split, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("teacher", "student", "role"),
    [((0, 1), (2, 3), "student"), ((2, 3), (0, 1), "teacher"), ((2, 3), (2, 3), "teacher")],
)
def test_validation_classes_are_nobody_elses(teacher, student, role):
    split = splits.ClassSplit(teacher, student, validation=(3, 4))
    with pytest.raises(InputError, match=f"validation and {role} both have d;"):
        splits.check_class_split(split, "abcde")


def test_single_validation_class_is_no_task():
    with pytest.raises(InputError, match="the validation 1 class"):
        splits.check_class_split(splits.ClassSplit((0, 1), (2, 3), (4,)), "abcde")
    splits.check_class_split(splits.ClassSplit((0, 1), (2, 3)), "abcde")  # none is none


@pytest.mark.parametrize(
    ("teacher", "student", "role"), [((0,), (1, 2), "teacher"), ((0, 1), (), "student")]
)
def test_single_class_is_no_task(teacher, student, role):
    with pytest.raises(InputError, match=f"the {role} {min(len(teacher), len(student))} class"):
        splits.check_class_split(splits.ClassSplit(teacher, student), ("a", "b", "c"))


# --- images ---------------------------------------------------------------------------------


def test_seventy_percent_of_every_class_train():
    trains = splits.training_rows(KEYS, LABELS, 0.7, seed=0)
    assert trains.dtype == bool
    # .7·60 = 42, .7·59 = 41.3 → 41, .7·58 = 40.6 → 41, .7·50 = 35, .7·44 = 30.8 → 31;
    # .7·45 is 31.499… in floating point.
    expected = {60: 42, 59: 41, 58: 41, 50: 35, 44: 31, 41: 29, 53: 37, 48: 34, 57: 40, 45: 31}
    for count, n in zip(np.bincount(LABELS[trains]), CUB_COUNTS, strict=True):
        assert abs(count - 0.7 * n) <= 0.5
        assert count == expected.get(n, count)


def test_rounding_is_half_up():
    # .5·5 = 2.5 → 3 and .5·1 = .5 → 1; NumPy's own rounding to even would say 2 and 0.
    labels = np.array([0] * 5 + [1])
    trains = splits.training_rows(np.array(list("abcdef")), labels, 0.5, seed=0)
    assert trains[:5].sum() == 3
    assert trains[5]


def test_instance_split_never_changes():
    """Pinned on first writing, as the class split is."""
    trains = splits.training_rows(KEYS, LABELS, 0.7, seed=0)
    assert list(KEYS[trains][:6]) == TRAINING_FIRST
    assert _hash(sorted(KEYS[trains])) == TRAINING_HASH


def test_instance_split_depends_on_its_seed():
    first, again, other = (splits.training_rows(KEYS, LABELS, 0.7, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Independent draws of 70 % agree on .7² + .3² = 58 % of the images.
    assert np.mean(first == other) == pytest.approx(0.58, abs=0.02)


@pytest.mark.parametrize(
    "draw",
    [
        lambda keys, labels: splits.training_rows(keys, labels, 0.7, seed=5),
        lambda keys, labels: splits.first_rows_per_class(keys, labels, 10, seed=5),
    ],
    ids=["training_rows", "first_rows_per_class"],
)
def test_draw_is_independent_of_row_order_and_of_other_classes(draw):
    chosen = set(KEYS[draw(KEYS, LABELS)])

    order = np.random.default_rng(0).permutation(len(KEYS))
    assert set(KEYS[order][draw(KEYS[order], LABELS[order])]) == chosen

    some = np.isin(LABELS, [3, 77, 150])
    assert set(KEYS[some][draw(KEYS[some], LABELS[some])]) == chosen & set(KEYS[some])


def test_classes_have_streams_of_their_own():
    # With one stream restarted for every class, classes of one size would draw alike.
    trains = splits.training_rows(KEYS, LABELS, 0.7, seed=0)
    assert not np.array_equal(trains[LABELS == 0], trains[LABELS == 1])


def test_few_images_are_nested_and_balanced():
    few, more = (splits.first_rows_per_class(KEYS, LABELS, n, seed=0) for n in (5, 20))
    np.testing.assert_array_equal(np.bincount(LABELS[few]), np.full(200, 5))
    np.testing.assert_array_equal(np.bincount(LABELS[more]), np.full(200, 20))
    assert np.all(more[few])


def test_class_with_too_few_images_gives_all_of_them():
    chosen = splits.first_rows_per_class(KEYS, LABELS, 50, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), np.minimum(CUB_COUNTS, 50))


def _hash(values):
    return hashlib.sha256(",".join(map(str, values)).encode()).hexdigest()[:16]
