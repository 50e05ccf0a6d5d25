"""The counts of processes, the plan, and the page of both."""

import json
import subprocess
import sys

import pytest

from benchmarks import scaling


def test_what_two_processes_count_is_what_was_planned() -> None:
    """The program asserts it; the work is halved, and no rank sends more than the matrices twice."""
    for row in scaling.counted_here(2):
        done = [each["multiply_adds"] for each in row["each"]]
        assert done[0] == done[1]
        assert all(each["bytes_sent"] <= 2 * row["bytes_of_matrices"] for each in row["each"])


@pytest.mark.parametrize("ranks", [8, 64])
def test_plans_are_near_the_best_that_any_division_can_do(ranks: int) -> None:
    for name, way, parameters in scaling.models(ranks):
        row = scaling.planned_row(name, way, parameters, ranks)
        assert row["limit"] <= row["most"] <= 1.1 * row["limit"], name
        assert row["bytes_sent_most"] <= 2 * row["bytes_of_matrices"], name


def test_the_page_holds_the_record() -> None:
    before = scaling.PAGE.read_text()
    scaling.write(json.loads(scaling.RECORD.read_text()))
    try:
        assert scaling.PAGE.read_text() == before
    finally:
        scaling.PAGE.write_text(before)


def test_planning_needs_no_process_group() -> None:
    code = (
        "from benchmarks import scaling; from torch import distributed; "
        "[scaling.planned(p) for _, _, p in scaling.models(8)]; assert not distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=scaling.ROOT)
