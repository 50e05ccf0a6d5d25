"""The planner: who orthogonalizes what."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from amuse_optim import orthogonalize
from amuse_optim.owners import Work, multiply_adds, owners_of

COSTS = st.lists(st.integers(1, 60), min_size=1, max_size=7)


def loads(work: list[Work], ranks: int) -> list[int]:
    found = [0] * ranks
    for each, owner in zip(work, owners_of(work, ranks), strict=True):
        found[owner] += each.multiply_adds
    return found


@given(COSTS, st.integers(1, 4))
def test_the_largest_share_is_within_grahams_bound_of_the_best_one(costs: list[int], ranks: int) -> None:
    work = [Work(str(i), cost) for i, cost in enumerate(costs)]
    best = min(
        max(sum(c for c, rank in zip(costs, division, strict=True) if rank == r) for r in range(ranks))
        for division in itertools.product(range(ranks), repeat=len(costs))
    )
    assert 3 * ranks * max(loads(work, ranks)) <= (4 * ranks - 1) * best


def test_the_bound_is_reached() -> None:
    """Graham's example: 5, 5, 4, 4, 3, 3, 3 on three ranks take 11 where 9 is possible."""
    work = [Work(str(i), cost) for i, cost in enumerate((5, 5, 4, 4, 3, 3, 3))]
    assert sorted(loads(work, 3)) == [8, 8, 11]


@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 3)))), st.randoms(), st.booleans())
def test_owners_do_not_depend_on_the_order(
    given_work: list[tuple[int, set[int]]], random: object, free: bool
) -> None:
    work = [Work(f"w{i}", cost, () if free else tuple(r)) for i, (cost, r) in enumerate(given_work)]
    shuffled = list(work)
    random.shuffle(shuffled)
    owners = dict(zip([each.name for each in work], owners_of(work, 4), strict=True))
    assert owners == dict(zip([each.name for each in shuffled], owners_of(shuffled, 4), strict=True))
    assert all(owners[each.name] in (each.ranks or range(4)) for each in work)


def test_what_has_one_place_comes_first_and_counts() -> None:
    """Rank 0 has 9 of its own, so all else goes to rank 1."""
    assert owners_of([Work("a", 5), Work("b", 9, (0,)), Work("c", 3)], 2) == [1, 0, 1]


def test_equal_matrices_are_dealt_by_name() -> None:
    assert owners_of([Work("d", 1), Work("b", 1), Work("a", 1), Work("c", 1)], 3) == [0, 1, 0, 2]


def test_names_are_all_different() -> None:
    with pytest.raises(ValueError, match="names that are all different"):
        owners_of([Work("a", 1), Work("a", 2)], 2)


@pytest.mark.parametrize("method", ["quintic", "polar_express"])
@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (8, 11), (30, 7), (5, 64)])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_multiply_adds_are_those_that_torch_counts(method: str, rows: int, cols: int, steps: int) -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(rows, cols), method=method, steps=steps)
    counted = counter.get_total_flops() // 2
    assert multiply_adds(rows, cols, method, steps) == counted
