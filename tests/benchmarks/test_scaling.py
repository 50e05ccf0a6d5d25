"""The counts of processes, the plan, and the page of both."""

import json
import subprocess
import sys

import pytest
from torch.distributed.tensor import Shard

from amuse_optim.spread import Spread
from benchmarks import scaling, scaling_peers
from benchmarks.scaling_models import MUON, Parameter, models, on


def test_what_two_processes_count_is_what_was_planned() -> None:
    """The program asserts it; the work is halved, and no rank sends more than the matrices twice."""
    for row in scaling.counted_here(2):
        done = [each["multiply_adds"] for each in row["each"]]
        assert done[0] == done[1]
        assert all(each["bytes_sent"] <= 2 * row["bytes_of_matrices"] for each in row["each"])


@pytest.mark.parametrize("ranks", [8, 64])
def test_plans_are_near_the_best_that_any_division_can_do(ranks: int) -> None:
    for name, way, parameters in models(ranks):
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
        "from benchmarks import scaling, scaling_models; from torch import distributed; "
        "[scaling.planned(p) for _, _, p in scaling_models.models(8)]; "
        "assert not distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=scaling.ROOT)


def small(name: str, *shape: int, spread: Spread) -> Parameter:
    return Parameter(name, {**MUON, "stacked": len(shape) == 3}, shape, spread)


def test_the_rule_of_dion_on_a_case_worked_out_by_hand() -> None:
    """One matrix costs 5 s^2 (2 l + s); a rank holds 4 of 7 rows, so that 8 are multiplied and 4 sent."""
    plain = on("fsdp", 2)
    three = [small(f"{layer}.up", 7, 6, spread=plain) for layer in range(3)]
    filled_up = 5 * 36 * (2 * 8 + 6)
    assert scaling_peers.dion(three) == (
        2 * filled_up,
        2 * 2 * 4 * 6,
    )  # two matrices for a rank, one of zeros
    whole_experts = small("0.experts", 3, 4, 3, spread=plain)  # two on the first rank
    assert scaling_peers.dion([*three, whole_experts]) == (
        2 * filled_up + 2 * 5 * 9 * (2 * 4 + 3),
        2 * 2 * 4 * 6,
    )
    cut_experts = small("0.experts", 2, 4, 3, spread=Spread((2, 2), (Shard(0), Shard(1)), (0, 1, 2, 3)))
    assert scaling_peers.dion([cut_experts]) == (
        5 * 9 * (2 * 4 + 3),
        2 * 2 * 3,
    )  # each pair: one, one of zeros


def test_the_rule_of_torchtitan_on_a_case_worked_out_by_hand() -> None:
    plain = on("fsdp", 2)
    shapes = {"0.up": (7, 6), "1.gate": (2, 2), "2.gate": (2, 2), "3.up": (5, 4)}
    given = [small(name, *shape, spread=plain) for name, shape in shapes.items()]
    plan = scaling.planned(given, scaling_peers.torchtitan)
    # Layer 0 to rank 0. Of the next bucket one gate to rank 1, which has less in all, and one to rank 0,
    # which has less of this bucket, though by far the most in all. Layer 3 to rank 1.
    large, gate, medium = 5 * 36 * (2 * 7 + 6), 5 * 4 * (2 * 2 + 2), 5 * 16 * (2 * 5 + 4)
    assert plan.multiply_adds == [large + gate, gate + medium]
    assert (
        plan.entries_sent == [18 + 2 + 2 + 12] * 2
    )  # rank 0 has 4 rows of 7 and 3 of 5, rank 1 has the others
    cut_experts = small("0.experts", 2, 4, 3, spread=Spread((2, 2), (Shard(0), Shard(1)), (0, 1, 2, 3)))
    plan = scaling.planned([cut_experts, cut_experts._replace(name="1.experts")], scaling_peers.torchtitan)
    assert plan.multiply_adds == [2 * 5 * 9 * (2 * 4 + 3), 0] * 2  # the first of each pair does both layers
    assert plan.entries_sent == [2 * 6] * 4
