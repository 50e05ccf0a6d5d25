import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, OneCycleLR

from amuse_lab.schedules import SCHEDULES, constant, cosine, linear, none, wsd

LENGTHS = [(1000, 100), (16_000, 2000), (117_300, 5865), (10, 1), (3, 1)]


def values(name: str, steps: int, warmup_steps: int) -> list[float]:
    return [SCHEDULES[name](step, steps=steps, warmup_steps=warmup_steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("cosine", 0.01, 0.01), ("linear", 0.01, 0.01), ("wsd", 0.01, 0.0), ("constant", 0.01, 1.0)],
)
@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
def test_end_points_are_exact(name: str, first: float, last: float, steps: int, warmup: int) -> None:
    schedule = SCHEDULES[name]
    assert schedule(0, steps=steps, warmup_steps=warmup) == first
    assert schedule(warmup, steps=steps, warmup_steps=warmup) == 1.0
    assert schedule(steps - 1, steps=steps, warmup_steps=warmup) == last


@pytest.mark.parametrize("name", SCHEDULES)
def test_rises_to_the_peak_falls_to_the_last_step_and_never_rises_again(name: str) -> None:
    used = values(name, 100, 20)
    assert used[:21] == sorted(used[:21])
    assert used[20:] == sorted(used[20:], reverse=True)
    assert max(used) == used[20] == 1.0
    after = [SCHEDULES[name](step, steps=100, warmup_steps=20) for step in (100, 150, 1000)]
    assert after == [used[-1]] * 3


@pytest.mark.parametrize(("name", "falling"), [("cosine", 79), ("linear", 79), ("wsd", 20)])
def test_every_step_of_the_decay_is_lower_than_the_one_before(name: str, falling: int) -> None:
    """None ends early: the last step is the lowest, by itself."""
    used = values(name, 100, 20)
    assert sum(later < earlier for earlier, later in pairwise(used[20:])) == falling
    assert used[-1] < used[-2]


@pytest.mark.parametrize(("name", "anneal"), [("cosine", "cos"), ("linear", "linear")])
def test_equals_one_cycle_of_torch(name: str, anneal: str) -> None:
    steps, warmup = 50, 9
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=steps,
        pct_start=(warmup + 1) / steps,  # torch's first phase ends one step before this share
        anneal_strategy=anneal,
        cycle_momentum=False,
        div_factor=100,
        final_div_factor=1,
    )
    theirs = []
    for _ in range(steps):
        theirs.append(cycle.get_last_lr()[0])
        optimizer.step()
        if len(theirs) < steps:
            cycle.step()
    assert values(name, steps, warmup) == pytest.approx(theirs, abs=1e-12)


def test_constant_warms_up_as_linear_lr_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = LinearLR(optimizer, start_factor=0.01, end_factor=1.0, total_iters=8)
    theirs = []
    for _ in range(20):
        theirs.append(warmup.get_last_lr()[0])
        optimizer.step()
        warmup.step()
    assert values("constant", 20, 8) == pytest.approx(theirs, abs=1e-12)
    assert values("wsd", 100, 8)[:20] == values("constant", 20, 8)


def test_wsd_holds_until_a_fifth_is_left() -> None:
    used = values("wsd", 16_000, 2000)
    assert set(used[2000:12_800]) == {1.0}
    assert used[12_800] == pytest.approx(1 - math.sqrt(1 / 3200))
    assert used[12_799 + 800] == pytest.approx(0.5)
    assert used[12_799 + 3200 // 100] == pytest.approx(0.9)
    assert wsd(80, steps=101, warmup_steps=0) == 1.0
    assert wsd(85, steps=101, warmup_steps=0) == pytest.approx(0.5)


def test_half_way_up_and_down_is_the_mean_of_floor_and_peak() -> None:
    for schedule in (cosine, linear):
        assert math.isclose(schedule(10, steps=121, warmup_steps=20), 0.505)
        assert math.isclose(schedule(70, steps=121, warmup_steps=20), 0.505)
    assert math.isclose(cosine(5, steps=121, warmup_steps=20), 0.01 + 0.99 * (1 - math.sqrt(0.5)) / 2)
    assert math.isclose(linear(5, steps=121, warmup_steps=20), 0.01 + 0.99 / 4)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    for schedule in SCHEDULES.values():
        assert schedule(0, steps=10, warmup_steps=0) == 1.0
        assert schedule(0, steps=1, warmup_steps=0) == 1.0
    assert cosine(9, steps=10, warmup_steps=0) == 0.01
    assert constant(9, steps=10, warmup_steps=0) == none(9, steps=10, warmup_steps=0) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_a_run_shorter_than_its_warm_up_ends_inside_it(name: str) -> None:
    assert values(name, 10, 20) == values(name, 100, 20)[:10]


def test_wsd_with_a_long_warm_up_decays_right_after_it() -> None:
    used = values("wsd", 20, 18)
    assert used[18:] == [1.0, 0.0]
    assert used[:19] == sorted(used[:19])
