"""Which classes teach and which are learnt; which images train and which are held back.

Everything here is a pure function of facts about the data (names, labels, keys) and a seed. Keys
identify images independently of the order in which a dataset happens to be stored, so a split is
the same on every machine.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import gin
import numpy as np

from refilled_tf.common.errors import require


@dataclasses.dataclass(frozen=True)
class ClassSplit:
    """Classes of each role, as ids of the dataset, ascending.

    Attributes:
        teacher: the classes that teach; in few-shot learning the SEEN ones (meta-train).
        student: the classes that are learnt; in few-shot learning the UNSEEN ones (meta-test).
        validation: classes to choose hyper-parameters on (meta-val); most splits have none.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    validation: tuple[int, ...] = ()


@gin.register
@dataclasses.dataclass(frozen=True)
class AlphabeticalHalves:
    """The paper's "hard" split: the first half of the classes teaches, the rest is learnt."""

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Splits `class_names`, whose order is the dataset's (alphabetical)."""
        half = len(class_names) // 2
        return ClassSplit(tuple(range(half)), tuple(range(half, len(class_names))))


@gin.register
@dataclasses.dataclass(frozen=True)
class RandomHalves:
    """The paper's "easy" split: a random half of the classes teaches, the rest is learnt."""

    seed: int = 0

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Splits `class_names` at random, the same way for the same seed."""
        order = np.random.default_rng(self.seed).permutation(len(class_names))
        half = len(class_names) // 2
        return _sorted_split(order[:half], order[half:])


@gin.register
@dataclasses.dataclass(frozen=True)
class SuperclassHalves:
    """A hard split for data with superclasses: teacher and student share none of them."""

    seed: int = 0

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Gives a random half of the superclasses to the teacher, the others to the student.

        Raises:
            InputError: the dataset has no superclasses.
        """
        require(
            superclasses is not None,
            "SuperclassHalves needs a dataset with superclasses; use RandomHalves or "
            "AlphabeticalHalves, or name the feature in TfdsSource.superclass",
        )
        superclasses = np.asarray(superclasses)
        order = np.random.default_rng(self.seed).permutation(np.unique(superclasses))
        teaches = np.isin(superclasses, order[: len(order) // 2])
        return _sorted_split(np.flatnonzero(teaches), np.flatnonzero(~teaches))


@gin.register
@dataclasses.dataclass(frozen=True)
class SharedClasses:
    """No split: teacher and student share all classes, as in standard distillation."""

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Gives every class to both."""
        every = tuple(range(len(class_names)))
        return ClassSplit(every, every)


@gin.register
@dataclasses.dataclass(frozen=True)
class ListedClasses:
    """Classes named one by one, for data of one's own and for published lists."""

    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()

    def __post_init__(self):
        _make_tuples(self)

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Looks the listed names up in `class_names`.

        Raises:
            InputError: a name is not a class of the dataset, or is there twice.
        """
        ids = {name: i for i, name in enumerate(class_names)}
        listed = (self.teacher, self.student, self.validation)
        twice = [name for names in listed for name, n in Counter(names).items() if n > 1]
        require(not twice, f"ListedClasses names {twice[:3]} twice in one list")
        unknown = [name for names in listed for name in names if name not in ids]
        require(
            not unknown,
            f"ListedClasses names {unknown[:3]}, which the dataset does not have; its classes "
            f"are {', '.join(class_names[:5])}, …",
        )
        return _sorted_split(*([ids[name] for name in names] for names in listed))


@gin.register
@dataclasses.dataclass(frozen=True)
class ListedSuperclasses:
    """Superclasses given by their numbers, each with all of its classes."""

    teacher: tuple[int, ...] = ()
    student: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()

    def __post_init__(self):
        _make_tuples(self)

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Looks the classes of the listed superclasses up.

        Raises:
            InputError: the dataset has no superclasses, or none of a listed number.
        """
        require(
            superclasses is not None,
            "ListedSuperclasses needs a dataset with superclasses; use ListedClasses, or name the "
            "feature in TfdsSource.superclass",
        )
        listed = (self.teacher, self.student, self.validation)
        known = np.unique(superclasses).tolist()
        unknown = [number for numbers in listed for number in numbers if number not in known]
        require(
            not unknown,
            f"ListedSuperclasses names {unknown[:3]}, which the dataset does not have; its "
            f"superclasses are {', '.join(map(str, known))}",
        )
        return _sorted_split(*(np.flatnonzero(np.isin(superclasses, part)) for part in listed))


@gin.register
@dataclasses.dataclass(frozen=True)
class RandomParts:
    """Random classes for every role; those beyond the three sizes take no part."""

    teacher: int
    student: int
    validation: int
    seed: int = 0

    def __post_init__(self):
        require(min(self._sizes) >= 0, f"{self._description} must not be negative")

    def __call__(self, class_names, superclasses=None) -> ClassSplit:
        """Deals `class_names` out at random, the same way for the same seed.

        Raises:
            InputError: there are fewer classes than the sizes add up to.
        """
        require(
            sum(self._sizes) <= len(class_names),
            f"{self._description} are {sum(self._sizes)} classes, but the dataset has "
            f"{len(class_names)}",
        )
        order = np.random.default_rng(self.seed).permutation(len(class_names))
        return _sorted_split(*np.split(order[: sum(self._sizes)], np.cumsum(self._sizes)[:-1]))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.teacher, self.student, self.validation

    @property
    def _description(self) -> str:
        return (
            f"RandomParts.teacher={self.teacher}, RandomParts.student={self.student} and "
            f"RandomParts.validation={self.validation}"
        )


def _make_tuples(listed) -> None:
    """Turns the lists that gin files may hold into tuples, which can be hashed."""
    for field in dataclasses.fields(listed):
        object.__setattr__(listed, field.name, tuple(getattr(listed, field.name)))


def _sorted_split(*parts) -> ClassSplit:
    """Makes a split of the teacher's, the student's and, if any, the validation classes."""
    return ClassSplit(*(tuple(sorted(int(c) for c in part)) for part in parts))


def check_class_split(split: ClassSplit, class_names) -> None:
    """Rejects a split in which teacher and student overlap in part or have too few classes.

    Validation classes may be missing; where there are some, nobody else has them.

    Raises:
        InputError: naming the classes at fault.
    """
    shared = sorted(set(split.teacher) & set(split.student))
    require(
        not shared or split.teacher == split.student,
        "the class split overlaps: teacher and student both have "
        + ", ".join(class_names[c] for c in shared[:3])
        + "; they must share no class (cross-task) or every class (standard)",
    )
    for role, classes in (("teacher", split.teacher), ("student", split.student)):
        shared = sorted(set(split.validation) & set(classes))
        require(
            not shared,
            f"the class split overlaps: validation and {role} both have "
            + ", ".join(class_names[c] for c in shared[:3])
            + "; the validation classes must be nobody else's",
        )
    for role in ("teacher", "student", "validation"):
        classes = getattr(split, role)
        require(
            len(classes) >= 2 or (role == "validation" and not classes),
            f"the class split gives the {role} {len(classes)} class(es); at least 2 are needed",
        )


def training_rows(keys, labels, fraction: float, seed: int) -> np.ndarray:
    """Draws the same share of every class for training; the rest is for test.

    A class of n images trains on round(fraction·n) of them. Its images are put in the order of
    their keys before drawing, and every class has its own random stream, so neither the order of
    the dataset nor the presence of other classes changes the outcome.

    Args:
        keys: [N] strings, unique.
        labels: [N] class ids.
        fraction: share of a class's images that train, in (0, 1).
        seed: of the draw.

    Returns:
        [N] bool, True for training.
    """
    chosen = np.zeros(len(labels), bool)
    for rows in _shuffled_rows_per_class(keys, labels, seed):
        chosen[rows[: int(np.floor(fraction * len(rows) + 0.5))]] = True
    return chosen


def first_rows_per_class(keys, labels, count: int, seed: int) -> np.ndarray:
    """Draws `count` images of every class (all of a class that has fewer).

    Args:
        keys: [N] strings, unique.
        labels: [N] class ids.
        count: images a class.
        seed: of the draw. A larger count extends the draw of a smaller one.

    Returns:
        [N] bool, True for the drawn images.
    """
    chosen = np.zeros(len(labels), bool)
    for rows in _shuffled_rows_per_class(keys, labels, seed):
        chosen[rows[:count]] = True
    return chosen


def _shuffled_rows_per_class(keys, labels, seed: int):
    keys, labels = np.asarray(keys), np.asarray(labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(keys[rows])]
        yield np.random.default_rng([seed, int(label)]).permutation(rows)
