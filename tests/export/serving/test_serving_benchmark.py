"""benchmarks/serving.py: its command asks all servers and prints a table."""

import commands
import pytest

pytestmark = pytest.mark.slow


def test_command_prints_all_servers_for_each_number_of_clients(base):
    flags = ("--clients=1,2", "--rounds=1", "--seconds=0.5")
    done = commands.run("benchmarks.serving", f"--export_dir={base}", *flags)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    ways = ["in threads", "one by one", "batches"]
    ratios = ["batches / in threads", "batches / one by one"]
    assert [row[:2] for row in cells] == [
        row for count in "12" for row in [[count, way] for way in ways] + [["", x] for x in ratios]
    ]
    for *others, joined, first, second in (cells[:5], cells[5:]):
        for alone, ratio in zip(others, (first, second), strict=True):
            assert float(ratio[2]) == pytest.approx(float(joined[2]) / float(alone[2]), rel=0.02)


def test_folder_without_versions():
    done = commands.run("benchmarks.serving", "--export_dir=absent")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no server could be started")
