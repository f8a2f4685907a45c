"""From photos to a phone: python -m refilled_tf.distill --images=DIR --teacher=SPEC --output=DIR.

Writes

OUTPUT/candidates/   ways of training that have competed on held-out images
OUTPUT/distill.gin   what the command stands for, with the winner, for refilled_tf.train
OUTPUT/tuning/       trials, with --tune
OUTPUT/training/     the training's folder
OUTPUT/saved_model/  for TF Serving
OUTPUT/tflite/       for phones and browsers
OUTPUT/microcontroller/   with --target: C++ of the network
OUTPUT/teacher/      the teacher itself with a linear classifier, for where it fits
OUTPUT/report.html   what has come out, and how to use it
OUTPUT/notes.txt     what is odd about the images, where that is much

and goes on where it was when the same command is given again.
"""

from __future__ import annotations

import collections
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epy

from export import QUANTIZATIONS, boards
from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import InputError, require
from refilled_tf.own_images import pools, students, teachers

with epy.lazy_imports():
    # The rest of the package knows nothing of exports. This program, which nothing imports, stands
    # above both and joins them.
    from export import micro_files, micro_targets, tflite_files, trained, versions
    from refilled_tf.data import image_folder, sources, unlabelled
    from refilled_tf.data import task as tasks
    from refilled_tf.experiment import config, experiment, launch, loading, predictions
    from refilled_tf.experiment import run as runs
    from refilled_tf.models import keras_files, networks
    from refilled_tf.own_images import candidates, distill_config, retraining, tuning
    from refilled_tf.reporting import distill_report

FLAGS = flags.FLAGS
NOTES = "notes.txt"


def check(argv: list[str]) -> None:
    """Rejects folders, files and names that are not there."""
    no_arguments(argv)
    output, images = Path(FLAGS.output), Path(FLAGS.images).expanduser().resolve()
    storage.require_writable("--output", output)
    require(
        not images.is_dir() or images not in output.expanduser().resolve().parents,
        f"--output={output} lies in --images={images}, where its folders would be classes",
    )
    pools.require_images(FLAGS.images)
    for spec in FLAGS.unlabelled:
        pools.require_named(spec)
    teachers.require_found(FLAGS.teacher)
    students.require_known(FLAGS.student, FLAGS.student_weights)
    require(
        FLAGS.minutes is None or not FLAGS.quick,
        f"--minutes={FLAGS.minutes} and --quick both say how long; give one of the two",
    )
    check_target()
    gin_files.check_names([], FLAGS.gin_param)


def check_target() -> None:
    """Rejects a --target without a budget, or beside options that it is to choose."""
    if FLAGS.target is None:
        for name in ("flash_kb", "ram_kb"):
            require(FLAGS[name].value is None, f"--{name} goes with a --target, such as generic")
        return
    boards.budget_of(FLAGS.target, FLAGS.flash_kb, FLAGS.ram_kb)
    boards.require_tflite_micro()
    for name in ("width", "image_size"):
        require(
            not FLAGS[name].present,
            f"--{name}={FLAGS[name].value} is what --target={FLAGS.target} chooses; give one of "
            "the two",
        )


def main(_: list[str]) -> None:
    """Trains, chooses, exports and reports."""
    output, command = Path(FLAGS.output), command_line("refilled_tf.distill")
    plan = describe(output, command)
    spec = config.load_text(plan.text, FLAGS.gin_param)
    require(
        bool(trained.of_student(spec.stages())),
        "Experiment.rows has no classifier of the student's to export, such as @probe/Stage()",
    )
    gin_file, work_dir = output / "distill.gin", output / "training"
    renew(plan, output)
    if not gin_file.exists():  # else all is chosen, and work_dir is of what was
        launch.open_run(spec, work_dir, FLAGS.data_dir)
    text, competed, trials = choose(plan, output, command)
    write_gin_file(gin_file, text, FLAGS.gin_param, FLAGS.retrain)
    if FLAGS.retrain:
        now = retraining.outdated(config.load_experiment([str(gin_file)], []), _run(work_dir))
        retraining.set_aside(now, output)
    spec, run, results = launch.launch([str(gin_file)], [], work_dir, FLAGS.data_dir, command)

    model = trained.load(work_dir, competed[0]["stage"] if competed else None, FLAGS.data_dir)
    newer_than = run.folder(model.stage) / "model.keras"
    saved_model = output / "saved_model"
    if not _made_since(saved_model / "server", newer_than):
        versions.publish(model, saved_model)
    tflite = output / "tflite"
    if not _made_since(tflite / "tflite.json", newer_than):
        print(tflite_files.write(model, list(QUANTIZATIONS), tflite, command))
    micro = output / "microcontroller"
    if FLAGS.target and not _made_since(micro / "microcontroller.json", newer_than):
        export_microcontroller(model, micro, command)
    head = export_head(output, command) if competed and plan.has_head else None
    report = distill_report.Report(
        command=command,
        rows=results["rows"],
        exported=model.stage.name,
        student=students.described(model.stage.backbone),
        data=model.data,
        network=model.network,
        size=model.stage.task.data.image_size,
        notes=image_notes(model.stage.task.data.source, output),
        tflite=storage.read_json(tflite / "tflite.json"),
        candidates=competed,
        trials=trials,
        gin=gin_file.read_text(encoding="utf-8"),
        output=output,
        gain=gain(run, model.stage.name),
        head=head,
        teacher=teacher_in_words(spec),
    )
    storage.write_text(output / "report.html", distill_report.html(report))
    retraining.forget_previous(output)
    if weak := distill_report.warning(results["rows"]):
        print(weak)
    print(distill_report.line(report))


class Plan(NamedTuple):
    """The plan of a distillation.

    Attributes:
        text: the experiment as gin text, of which the rows are yet to be chosen.
        task: the student's.
        has_pool: whether it has unlabelled images.
        has_head: whether the teacher's network can have a head, to be shipped itself.
    """

    text: str
    task: tasks.Task
    has_pool: bool
    has_head: bool


def renew(plan: Plan, output: Path) -> None:
    """Rejects an output of other images or options or, with --retrain, sets aside what is outdated.

    Raises:
        InputError: saying all that has changed.
    """
    found: retraining.Outdated = {}
    compete, final = output / "candidates", output / "distill.gin"
    if compete.exists():
        spec = candidates.experiment_of(plan.text, plan.has_pool)
        found |= retraining.outdated(spec, _run(compete))
    if final.exists():
        spec = config.load_experiment([str(final)], [])
        found |= retraining.outdated(spec, _run(output / "training"))
    source = plan.task.data.source
    if not FLAGS.retrain:
        retraining.require_current(found, output, source)
    elif found:
        trials = output / "tuning"
        retraining.set_aside([*found, *([trials] if trials.exists() else ())], output)
    storage.write_json(output / retraining.IMAGES, retraining.listing(source))


def _run(folder: Path) -> runs.Run:
    """The folder in which settings are compared; nothing runs there."""
    return runs.Run(folder, FLAGS.data_dir, experiment.make_strategy("mirrored"))


def export_microcontroller(model: trained.Trained, folder: Path, command: str) -> None:
    """Exports the student as OUTPUT/microcontroller/, in place of what may be there."""
    found = micro_files.write(model, folder, None, False, command, instead=True)
    print(
        f"{folder}: {found['bytes'] / 1024:,.0f} kB of flash, "
        f"{found['arena_reserved_bytes'] / 1024:,.0f} kB of RAM, "
        f"{100 * found['int8']['accuracy']:.2f} % right by tflite-micro"
    )


def export_head(output: Path, command: str) -> dict[str, Any] | None:
    """Exports the teacher with a linear head as OUTPUT/teacher/*.tflite.

    Returns:
        What its tflite.json holds; None, with a word, where TFLite does not take such a network.
    """
    folder, work_dir = output / "teacher", output / "training"
    newer_than = work_dir / "stages" / candidates.HEAD / "model.keras"
    if not _made_since(folder / "tflite.json", newer_than):
        head = trained.load(work_dir, candidates.HEAD, FLAGS.data_dir)
        try:
            tflite_files.write(head, ["none", "int8"], folder, command)
        except InputError as error:
            print(f"the teacher itself is not exported: {error}")
            return None
    return storage.read_json(folder / "tflite.json")


def describe(output: Path, command: str) -> Plan:
    """Turns the flags into gin, and looks at the images.

    Args:
        output: the folder of all results.
        command: that the user has given.
    """
    teacher = teachers.parse(
        FLAGS.teacher,
        FLAGS.trust_teacher,
        **{name: FLAGS[f"teacher_{name}"].value for name in teachers.OPTIONS},
    )
    if teachers.cost(teacher):
        print(teachers.cost(teacher))
    task = distill_config.task_of(FLAGS.images, FLAGS.data_dir)
    widths, image_size = size_of_student(task, output)
    student, *_ = [students.parse(FLAGS.student, width, FLAGS.student_weights) for width in widths]
    distill_config.check_choices(widths, FLAGS.gin_param, FLAGS.tune)
    pool = [pools.parse(spec, FLAGS.data_dir) for spec in FLAGS.unlabelled]
    settings = distill_config.settings(task, teacher, student, image_size, pool)
    flags_of_train = [f"--gin_file={output / 'distill.gin'}", f"--work_dir={output / 'training'}"]
    if FLAGS.data_dir:
        flags_of_train.append(f"--data_dir={FLAGS.data_dir}")
    opening = [
        shlex.join(["python", "-m", "refilled_tf.train", *flags_of_train]),
        f"Written by {command}",
    ]
    # What the user sets may well decide which images there are, and that how they are batched.
    task = distill_config.task_in(distill_config.gin_text([], settings, {}, FLAGS.gin_param))
    survey(task, FLAGS.data_dir, output)
    further = 0
    if pool:
        found = unlabelled.load(dataclasses.replace(task, unlabelled=tuple(pool)), FLAGS.data_dir)
        further = len(found.examples.labels)
        print(f"{further} unlabelled images, without {len(found.scored)} that are tested on")
    images = len(candidates.training_rows(task, FLAGS.data_dir))

    views = distill_config.QUICK_VIEWS if FLAGS.quick else distill_config.views(images + further)

    def text(steps: int) -> str:
        lengths = distill_config.lengths(images, steps, views)
        return distill_config.gin_text(opening, settings, lengths, FLAGS.gin_param)

    steps = candidates.QUICK_STEPS if FLAGS.quick else candidates.STEPS
    if FLAGS.minutes is not None:
        steps = candidates.planned_steps(
            FLAGS.minutes, text(steps), bool(pool), output / "candidates", FLAGS.data_dir
        )
    return Plan(text(steps), task, bool(pool), networks.in_keras(teacher))


def size_of_student(task: tasks.Task, output: Path) -> tuple[list[float], int]:
    """Returns width multipliers and image size: the options', or what fits a --target.

    What was found to fit is kept in OUTPUT/target.json.
    """
    if FLAGS.target is None:
        return FLAGS.width, FLAGS.image_size
    budget = boards.budget_of(FLAGS.target, FLAGS.flash_kb, FLAGS.ram_kb)
    index = tasks.read_index(task.data.source, FLAGS.data_dir)
    classes = len(tasks.select(task, index).class_names)
    asked = {"student": FLAGS.student, "classes": classes, **budget._asdict()}
    file = output / "target.json"
    known = storage.read_json(file) if file.exists() else {}
    if {name: known.get(name) for name in asked} != asked:
        found = micro_targets.fit(
            budget, lambda width: students.parse(FLAGS.student, width), classes
        )
        known = asked | {"width": found.width, "image_size": found.image_size}
        storage.write_json(file, known)
    return [known["width"]], known["image_size"]


def choose(
    plan: Plan, output: Path, command: str
) -> tuple[str, list[dict[str, Any]], list[tuning.TuningTrial]]:
    """Has the candidates compete, unless the user has chosen rows, and tunes the winner.

    Returns:
        The experiment of the final training as gin text, the candidates, best first, or [], and the
        trials of --tune.
    """
    text, competed, trials = plan.text, [], []
    chosen = {config.option_of(param) for param in FLAGS.gin_param}
    if "Experiment.rows" not in chosen:
        folder = output / "candidates"
        competed = candidates.run(plan.text, plan.has_pool, folder, FLAGS.data_dir, command)
        print(distill_report.competition(competed))
        text += candidates.final_rows(competed[0]["stage"], plan.has_head) + "\n"
    if FLAGS.tune:
        widths = students.width_option(FLAGS.student), FLAGS.width
        trials = tuning.run(text, *widths, output / "tuning", FLAGS.tune, FLAGS.data_dir, command)
        text += "".join(f"{line}\n" for line in tuning.chosen(trials))
    return text, competed, trials


def teacher_in_words(spec: experiment.Experiment) -> str:
    """Returns such as "FILE.keras, with embeddings of 64 numbers, of layer 'flat'", or ""."""
    stage = next((each for each in spec.stages() if each.name == "teacher"), None)
    if stage is None:
        return ""
    teacher = stage.backbone
    if isinstance(teacher, keras_files.Application):
        said = f"imagenet:{teacher.name}"
    else:
        said = getattr(teacher, "file", type(teacher).__name__)
    if networks.looks_up(teacher):
        index = tasks.read_index(stage.task.data.source, FLAGS.data_dir)
        size = teacher.embeddings(index.keys[tasks.select(stage.task, index).train[:1]]).shape[1]
    else:
        size = loading.untrained_network(stage).output_shape["embedding"][-1]
    said += f", with embeddings of {size} numbers"
    if isinstance(teacher, keras_files.KerasFile | keras_files.Application):
        return f"{said}, of layer {teacher.embedding_layer()!r}"
    layer = getattr(teacher, "layer", None)
    return f"{said}, of layer {layer!r}" if layer else said


def gain(run: runs.Run, exported: str) -> tuple[float, float] | None:
    """Returns what the exported stage is above the student alone, with its standard error.

    As shares of the test images; None where there is nothing to compare.
    """
    stages = run.work_dir / "stages"
    reference = stages / candidates.REFERENCE
    if exported == candidates.REFERENCE or not (reference / predictions.FILE).is_file():
        return None
    return predictions.difference([stages / exported], [reference])


def survey(task: tasks.Task, data_dir: str | None, output: Path) -> tasks.Partition:
    """Prints how many images of every class train and are tested, and what is odd about them.

    Args:
        task: the student's.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.
        output: the folder of notes.txt, if it takes one.

    Returns:
        Which images train and are tested.

    Raises:
        InputError: naming the file or class at fault.
    """
    # First, as an error may be about the same files.
    print("\n".join(image_notes(task.data.source, output)))
    index = tasks.read_index(task.data.source, data_dir)
    selection = tasks.select(task, index)
    print(counts(index.labels, selection))
    return selection


def image_notes(source: sources.Source, output: Path) -> list[str]:
    """Returns what is odd about images of one's own, and writes notes.txt where that is much."""
    if not isinstance(source, image_folder.ImageFolder):
        return []
    seen, file = source.survey(), output / NOTES
    short = image_folder.notes(seen, where=f", in {NOTES}")
    whole = image_folder.notes(seen, shown=None)
    file.unlink(missing_ok=True)
    if short != whole:
        storage.write_text(file, "".join(f"{note}\n" for note in whole))
    return short


def counts(labels: np.ndarray, selection: tasks.Partition) -> str:
    """Formats how many images of every class train and are tested."""
    width = max(len(name) for name in selection.class_names)
    train, test = (collections.Counter(labels[rows]) for rows in (selection.train, selection.test))
    lines = [f"{'class':{width}}  train  test"]
    for number, name in zip(selection.classes, selection.class_names, strict=True):
        lines.append(f"{name:{width}}  {train[number]:5d}  {test[number]:4d}")
    lines.append(f"{len(lines) - 1} classes, {len(selection.train)} + {len(selection.test)} images")
    return "\n".join(lines)


def write_gin_file(path: Path, text: str, params: Sequence[str], replace: bool) -> None:
    """Writes the gin file, unless there is another one, which somebody may have changed.

    Args:
        path: of the file.
        text: for it.
        params: the settings in it that somebody has given.
        replace: whether to write it all the same.

    Raises:
        InputError: there is, or the text is no experiment; see `config.load_experiment`.
    """
    if replace or not path.exists():
        config.load_text(text, params)
        storage.write_text(path, text)
        return
    there, now = path.read_text(encoding="utf-8").splitlines(), text.splitlines()
    changed = [line for line in there if line not in now and not line.startswith("#")]
    added = [line for line in now if line not in there and not line.startswith("#")]
    require(
        not changed and not added,
        f"{path} is there already, and has {'; '.join(changed) or 'nothing'} where this command "
        f"would write {'; '.join(added) or 'nothing'}; add --retrain to train anew what that "
        "touches, take another --output, or run that file by the command in its first line",
    )


def _made_since(path: Path, source: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= source.stat().st_mtime


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string(
        "images", None, "A folder with a folder for each class, or a TFDS name.", required=True
    )
    flags.DEFINE_string("teacher", None, f"The teacher: {teachers.ACCEPTED}.", required=True)
    for name, explanation in teachers.OPTIONS.items():
        flags.DEFINE_string(f"teacher_{name}", None, explanation)
    flags.DEFINE_bool("trust_teacher", False, teachers.TRUST)
    flags.DEFINE_string("student", "MobileNet", f"Network: {', '.join(students.NETWORKS)}.")
    flags.DEFINE_string(
        "student_weights", None, "What it starts from: imagenet, or a file such as FILE.keras."
    )
    flags.DEFINE_multi_float(
        "width", [0.25], "The student's width multiplier; several for --tune to choose from."
    )
    flags.DEFINE_integer("image_size", 96, "Side of the student's images in pixels.")
    flags.DEFINE_enum(
        "target", None, list(boards.TARGETS), "A microcontroller, which width and size must fit."
    )
    flags.DEFINE_integer("flash_kb", None, "For the network, in place of the target's.", 1)
    flags.DEFINE_integer("ram_kb", None, "For its arena, in place of the target's.", 1)
    flags.DEFINE_string("output", None, "Folder of all results.", required=True)
    flags.DEFINE_multi_string("unlabelled", [], f"Images without labels: {pools.ACCEPTED}.")
    flags.DEFINE_float("minutes", None, "About how long all trainings may take.", 1)
    flags.DEFINE_bool("quick", False, "A tenth of the steps, for a first look.")
    flags.DEFINE_bool("retrain", False, "Train anew what other images or options touch.")
    flags.DEFINE_integer("tune", 0, "Trials that choose weights, temperatures and rate.", 0)
    flags.DEFINE_multi_string("gin_param", [], "A single setting, such as 'Recipe.epochs = 10'.")
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    run_main(main, check, goes_on=True, notes=lambda: Path(FLAGS.output) / NOTES)
