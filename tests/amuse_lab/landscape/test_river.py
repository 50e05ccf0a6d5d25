import copy

import pytest
import torch

from amuse_lab.errors import ConfigError
from amuse_lab.landscape.points import Points, hidden_matrices, trained
from amuse_lab.landscape.river import Branch, River, RiverSettings, river_test
from amuse_lab.landscape.running import live
from amuse_lab.optimizers import AdamW
from tests.amuse_lab.landscape import runs
from tests.amuse_lab.landscape.runs import trainer

SETTINGS = RiverSettings(steps=6, rates=(0.01,), branches=2)


def test_a_decay_is_that_of_torchs_muon_and_adamw() -> None:
    run = trainer(steps=5)
    found = river_test(run, SETTINGS)
    assert set(found.before) == {"x", "y", "z"}
    for start, point in Points.of(run).items():
        for branch in found.branches:
            model = copy.deepcopy(run.model)
            parameters = trained(model)
            for name, parameter in parameters.items():
                parameter.data.copy_(point[name])
            matrices = [parameters[name] for name in hidden_matrices(model)]
            rest = [p for p in parameters.values() if all(p is not matrix for matrix in matrices)]
            optimizers = [
                torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.999), eps=1e-10, weight_decay=0.0),
            ]
            for step in range(6):
                batch = run.task.batch(5 + 6 * branch.number + step)
                run.task.loss(model, batch).backward()
                for optimizer in optimizers:
                    optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 6)
                    optimizer.step()
                    optimizer.zero_grad()
            expected = run.task.evaluate(model.eval(), full=False)["loss"]
            # torch's Muon orthogonalizes in bfloat16.
            assert branch.losses[start]["0.01"] == pytest.approx(expected, abs=2e-3)
            assert abs(found.before[start] - expected) > 0.01


def test_the_run_is_not_touched() -> None:
    run, plain = trainer(steps=5), trainer(steps=5)
    river_test(run, SETTINGS)
    for each in (run, plain):
        each.advance(look=False)
    assert run.losses == plain.losses
    for one, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_before_is_the_validation_loss_at_the_points_and_at_others() -> None:
    run = trainer(steps=5)
    zeros = {name: torch.zeros_like(value) for name, value in Points.of(run).x.items()}
    found = river_test(run, RiverSettings(steps=1, branches=1), {"nothing": zeros})
    at_x, at_y = run.evaluate()
    assert found.before["x"] == pytest.approx(at_x["loss"], rel=1e-5)
    assert found.before["y"] == pytest.approx(at_y["loss"], rel=1e-5)
    assert found.before["nothing"] == pytest.approx(torch.tensor(256.0).log().item(), rel=1e-5)
    assert set(found.branches[0].losses) == {"x", "y", "z", "nothing"}


def test_points_that_are_one_are_tried_once() -> None:
    found = river_test(trainer(AdamW(lr=0.01, warmup_steps=2), steps=3), RiverSettings(steps=1, branches=1))
    assert set(found.before) == {"x"}


def test_the_gain_is_over_x_after_the_better_decay() -> None:
    branches = [Branch(n, {"z": {"0.1": 2.0 - n, "0.2": 2.5}}) for n in (0, 1)]
    gain = River(7, {"x": 3.0}, branches).gain("z")
    assert (gain.n, gain.mean) == (2, 1.5)
    assert gain.half == pytest.approx(12.7062 * 0.5**0.5 / 2**0.5, rel=1e-4)


def test_a_power_average_is_that_of_all_steps() -> None:
    config = trainer().config
    settings = RiverSettings(steps=1, branches=1, powers=(1.0, 5.0))
    found = live(config, [3, 8], runs.SETTINGS, settings, name="amuse", setting="text")
    (river,) = found.rivers
    assert set(river.before) == {"x", "y", "z", "power 1", "power 5"}
    run, visited = trainer(), []
    for _ in range(8):
        run.advance(look=False)
        visited.append(Points.of(run).z)
    for name, parameter in trained(run.model).items():
        parameter.data.copy_(torch.stack([z[name] for z in visited]).mean(dim=0))
    expected = run.task.evaluate(run.model.eval(), full=False)["loss"]
    assert river.before["power 1"] == pytest.approx(expected, rel=1e-4)


def test_kappas_are_checked() -> None:
    with pytest.raises(ConfigError, match="powers must be at least 1 each"):
        RiverSettings(powers=(0.5,))


@pytest.mark.parametrize("rates", [(), (0.1, 0.0)], ids=["none", "zero"])
def test_rates_are_checked(rates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rates must be one or more positive learning rates"):
        RiverSettings(rates=rates)
