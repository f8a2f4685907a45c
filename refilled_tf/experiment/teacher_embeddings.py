"""Embeddings of a stage's teachers, for objectives that fit something to them before training."""

from __future__ import annotations

import numpy as np

from refilled_tf.data import batches
from refilled_tf.data.task import Examples, TaskData
from refilled_tf.experiment import teacher_cache
from refilled_tf.experiment.loading import load_network, outputs
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.models import networks
from refilled_tf.objectives.base import TeacherEmbeddings


def teacher_embeddings(
    stage: Stage, run: Run, data: TaskData, examples: Examples, views: batches.Views | None
) -> TeacherEmbeddings:
    """Prepares the answers, and computes none of them yet.

    Args:
        stage: with finished teachers.
        run: where.
        data: of its task.
        examples: its training images, the labelled ones first.
        views: as `teacher_cache.views` returns them.
    """

    def labelled(count: int) -> list[np.ndarray]:
        found = []
        for number, teacher in enumerate(stage.teachers):
            plain = outputs(teacher, run, stage.task, "train")["embedding"][:, np.newaxis]
            further = _augmented(number, teacher, count)
            found.append(np.concatenate([plain, *further], axis=1))
        return found

    def _augmented(number: int, teacher: Stage, count: int) -> list[np.ndarray]:
        """Returns [[N, count, d]], or [] where there are no augmentations to be had."""
        if count == 0 or stage.looks_up:
            return []
        if views is not None and views.numbers is not None and views.per_image >= count:
            cached = views.outputs[networks.numbered("embedding", number)]
            return [cached[: len(data.train.labels), :count].astype(np.float32)]
        network = networks.embedding_part(load_network(teacher, run))
        return [teacher_cache.of_views(network, data.train, count, stage.seed, stage.task.data)]

    def sample(count: int) -> list[np.ndarray]:
        random = np.random.default_rng([stage.seed, 2])
        total = len(examples.labels)
        rows = np.sort(random.choice(total, min(count, total), replace=False))
        found = []
        for teacher in stage.teachers:
            if networks.looks_up(teacher.backbone):
                found.append(teacher.backbone.embeddings(examples.keys[rows]))
                continue
            some = Examples(examples.images[rows], examples.labels[rows], examples.keys[rows])
            crops = batches.scoring_batches(some, stage.task.data.crop_size)
            network = networks.embedding_part(load_network(teacher, run))
            found.append(networks.outputs_of(network, crops)["embedding"])
        return found

    return TeacherEmbeddings(
        data.train.labels, examples.keys, len(data.class_names), stage.seed, labelled, sample
    )
