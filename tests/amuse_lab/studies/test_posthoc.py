import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from amuse_lab.errors import ConfigError
from amuse_lab.studies.posthoc import GROWTH, LARGEST_RESIDUAL, Snapshots, combination, profile, residual
from amuse_lab.studies.readouts import PowerAverages
from tests.amuse_lab.studies import small


@pytest.mark.parametrize("kappa", [1.0, 2.0, 7.3, 20.0])
def test_the_profile_is_that_of_the_recursion(kappa: float) -> None:
    """Each weight by hand: a unit vector per step, averaged."""
    weights = np.zeros(30)
    for step in range(1, 31):
        c = kappa / (step + kappa - 1)
        weights *= 1 - c
        weights[step - 1] += c
    np.testing.assert_allclose(profile(kappa, 30, np.arange(1.0, 31.0)), weights, rtol=1e-9)
    assert profile(kappa, 20, np.arange(21.0, 31.0)).tolist() == [0.0] * 10


def steps_of_snapshots(last: int) -> list[int]:
    steps, step = [], 1
    while step < last:
        steps.append(step)
        step = math.ceil(step * GROWTH) if step * GROWTH > step + 1 else step + 1
    return [*steps, last]


@pytest.mark.parametrize("last", [60, 500, 3200, 60_000])
def test_kappas_between_are_rebuilt_from_snapshots_of_two_but_not_from_two_averages(last: int) -> None:
    many = [(kappa, step) for step in steps_of_snapshots(last) for kappa in (5.0, 20.0)]
    for kappa in (5.0, 6.0, 8.0, 10.0, 14.0, 18.0, 20.0):
        assert combination(many, kappa, last)[1] <= LARGEST_RESIDUAL
    two = [(5.0, last), (20.0, last)]
    assert combination(two, 10.0, last)[1] > 0.05
    assert combination(many, 200.0, last)[1] > LARGEST_RESIDUAL  # outside of what was kept


def test_blocks_of_steps_give_the_residual_of_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [(kappa, step) for step in steps_of_snapshots(9000) for kappa in (5.0, 20.0)]
    in_blocks = combination(kept, 9.0, 9000)[1]
    monkeypatch.setattr("amuse_lab.studies.posthoc._EXACT", 10_000)
    assert in_blocks == pytest.approx(combination(kept, 9.0, 9000)[1], rel=0.05)


def walk(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(steps, 6, generator=generator, dtype=torch.float64)
    return list(moves.cumsum(0))


def test_a_rebuilt_average_is_near_the_average_that_was_kept() -> None:
    path = walk(400)
    averages = PowerAverages([path[0]], [5.0, 20.0])
    direct = PowerAverages([path[0]], [10.0])
    snapshots = Snapshots()
    for step, z in enumerate(path, start=1):
        averages.update([z])
        direct.update([z])
        snapshots.take(step, averages.averages)
    (rebuilt,), left = snapshots.rebuild(10.0, 400)
    assert left == pytest.approx(residual((5.0, 20.0), 10.0, 400), rel=1e-6)
    assert 0 < left <= LARGEST_RESIDUAL
    (kept,) = direct.averages[10.0]
    farthest = max((z - kept).norm() for z in path[200:])
    assert (rebuilt - kept).norm() <= 2 * LARGEST_RESIDUAL * farthest
    assert (averages.averages[5.0][0] - kept).norm() > 4 * (rebuilt - kept).norm()


def test_a_study_that_could_not_rebuild_a_readout_is_refused_before_its_runs() -> None:
    study = small.study()
    assert study.entries[1].readouts == ("x", "power 5", "power 10")
    assert study.kept == (5.0, 20.0)
    with pytest.raises(
        ConfigError,
        match=r"^readouts must be those of kept = \(20.0,\) or within 2% of what they make, got .power 10",
    ):
        replace(study, kept=(20.0,))
    with pytest.raises(ConfigError, match=r"^readouts must be x, y, power K"):
        replace(study, entries=(replace(study.entries[1], readouts=("z",)),))


def test_what_cannot_be_rebuilt_is_refused_with_its_residual() -> None:
    averages = PowerAverages([torch.zeros(2)], [5.0, 20.0])
    snapshots = Snapshots()
    for step in range(1, 101):
        averages.update([torch.full((2,), float(step))])
        snapshots.take(step, averages.averages)
    with pytest.raises(ValueError, match=r"kappa 200 cannot be rebuilt at step 100 from those of 5, 20: \d"):
        snapshots.rebuild(200.0, 100)


def test_snapshots_go_on_from_their_state() -> None:
    path = walk(90)
    whole, averages = Snapshots(), PowerAverages([path[0]], [5.0, 20.0])
    again, resumed = Snapshots(), PowerAverages([path[0]], [5.0, 20.0])
    for step, z in enumerate(path, start=1):
        averages.update([z])
        whole.take(step, averages.averages)
        if step == 40:
            again.load_state_dict(whole.state_dict())
            resumed.load_state_dict(averages.state_dict())
        if step > 40:
            resumed.update([z])
            again.take(step, resumed.averages)
    assert torch.equal(again.rebuild(9.0, 90)[0][0], whole.rebuild(9.0, 90)[0][0])
