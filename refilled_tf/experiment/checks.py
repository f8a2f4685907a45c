"""Checks of a stage before anything is trained."""

from __future__ import annotations

from refilled_tf.common.errors import require
from refilled_tf.data import batches, unlabelled
from refilled_tf.data.task import read_index, select
from refilled_tf.experiment.loading import untrained_network
from refilled_tf.experiment.run import Run, check_folder
from refilled_tf.experiment.stage import Stage
from refilled_tf.models import networks


def check(stage: Stage, run: Run) -> None:
    """Rejects what cannot be trained, before anything is: folder, data, batches.

    Raises:
        InputError: naming the option, class or dataset at fault.
    """
    stage.settings()  # reads the files that it names, or says which is missing
    check_folder(stage, run)
    index = read_index(stage.task.data.source, run.data_dir)
    selection = select(stage.task, index)
    for known in (stage, *stage.teachers):
        if networks.looks_up(known.backbone):
            known.backbone.embeddings(index.keys[[*selection.train, *selection.test]])
    if not stage.objective.trains:
        if stage.start:
            networks.require_same_weights(untrained_network(stage.start), untrained_network(stage))
        elif not networks.looks_up(stage.backbone):
            untrained_network(stage)
        return
    recipe, replicas = stage.training_recipe, run.strategy.num_replicas_in_sync
    require(
        recipe.batch_size >= replicas and recipe.batch_size % replicas == 0,
        f"Recipe.batch_size={recipe.batch_size} must be a multiple of the {replicas} replicas",
    )
    stage.objective.check_batches(recipe, replicas)
    further = 0
    if stage.task.unlabelled:
        examples = unlabelled.load(stage.task, run.data_dir).examples
        further = len(examples.labels)
        require(
            recipe.unlabelled % replicas == 0,
            f"Recipe.unlabelled_share={recipe.unlabelled_share} of Recipe.batch_size="
            f"{recipe.batch_size} is {recipe.unlabelled} images, which must be a multiple of the "
            f"{replicas} replicas",
        )
        require(
            not recipe.mixup or not stage.teacher_cache.views,
            f"Recipe.mixup={recipe.mixup} makes new images in every step, of which a teacher cache "
            "knows nothing; set --gin_param='teacher_cache.views = 0'",
        )
        for teacher in stage.teachers:
            if networks.looks_up(teacher.backbone):
                teacher.backbone.embeddings(examples.keys)
    batches.order(index.labels[selection.train], further, recipe, stage.seed, 0, 1)
    if stage.objective.shares_classes:
        for teacher in stage.teachers:
            taught = select(teacher.task, read_index(teacher.task.data.source, run.data_dir))
            require(
                teacher.objective.classifies and taught.class_names == selection.class_names,
                f"stage {stage.name!r} has the objective {type(stage.objective).__name__}, whose "
                "teacher must have learnt the student's classes; take "
                "--gin_param='Data.class_split = @SharedClasses()', or a cross-task objective",
            )
    network = untrained_network(stage)
    require(
        bool(network.trainable_weights),
        f"stage {stage.name!r} is to train a network of {type(stage.backbone).__name__}, which has "
        "no weights that Keras could train; it can teach (Stage.teacher) and be probed",
    )
    if stage.start:
        networks.require_same_weights(untrained_network(stage.start), network)
    if stage.selection:
        stage.selection.check(network, run.data_dir)
    if stage.objective.features:
        for teacher in stage.teachers:
            sides = (network, untrained_network(teacher))
            stage.objective.adapter(
                *(networks.feature_shapes(side, stage.objective.features) for side in sides)
            )
