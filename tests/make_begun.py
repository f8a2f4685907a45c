"""Makes tests/begun/, which test_stack.py goes on with: python tests/make_begun.py.

A work_dir with a finished teacher and the first of a student's two epochs, and in unbroken.json
what the same versions make of both epochs. To be run on Python 3.10 or 3.11.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))

import tiny  # noqa: E402

from refilled_tf.common import storage  # noqa: E402
from refilled_tf.experiment import training  # noqa: E402

BEGUN = TESTS / "begun"


def main() -> None:
    """Replaces the folder."""
    shutil.rmtree(BEGUN, ignore_errors=True)
    training.train(tiny.teacher(), tiny.run_in(BEGUN))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(BEGUN, folder, dirs_exist_ok=True)
        unbroken = training.train(tiny.first(), tiny.run_in(Path(folder)))
    tiny.train_until(1, tiny.first(), tiny.run_in(BEGUN))
    for path in (*BEGUN.rglob("logs"), *BEGUN.rglob("cache")):
        shutil.rmtree(path)
    storage.write_json(BEGUN / "unbroken.json", unbroken)


if __name__ == "__main__":
    main()
