from dataclasses import replace

import pytest
import torch

from amuse_lab.errors import ConfigError
from amuse_lab.optimizers import AdamW, Amuse, ScheduleFreeAdamW
from amuse_lab.parallel import ALONE
from amuse_lab.studies.posthoc import profile, residual
from amuse_lab.studies.readouts import PowerAverages, Readouts, parsed
from amuse_lab.trainer import Trainer
from tests.amuse_lab.studies import small

OPTIMIZERS = {
    "amuse": Amuse(lr=0.02, warmup_steps=2),
    "gradients at z": Amuse(lr=0.02, warmup_steps=2, beta1=0.0, rho=0.0),
    "with an ema": Amuse(lr=0.02, warmup_steps=2, ema=0.9),
    "sf-adamw": ScheduleFreeAdamW(lr=0.02, warmup_steps=2),
    "adamw": AdamW(lr=0.02, warmup_steps=2),
}


@pytest.mark.parametrize("readout", ["z", "power", "power 0.5", "power x", "line", "x 3", "line nan", ""])
def test_what_is_no_readout_is_refused(readout: str) -> None:
    with pytest.raises(ConfigError, match="readouts must be x, y, power K"):
        parsed(readout)


def test_power_averages_are_weighted_sums_by_their_profile() -> None:
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(25, 3, generator=generator, dtype=torch.float64)
    averages = PowerAverages([path[0]], [1.0, 4.0, 10.0])
    for z in path:
        averages.update([z])
    for kappa, (average,) in averages.averages.items():
        weights = torch.tensor(
            [profile(kappa, 25, step)[0] for step in torch.arange(1.0, 26.0)[:, None].numpy()]
        )
        torch.testing.assert_close(average, weights @ path)
    torch.testing.assert_close(averages.averages[1.0][0], path.mean(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_readouts_are_measured_where_they_say_and_leave_no_trace(name: str) -> None:
    config = replace(small.study().run, optimizer=OPTIMIZERS[name], steps=6)
    trainer = Trainer.build(config, ALONE, torch.device("cpu"))
    readouts = Readouts(trainer, ("x", "y", "line 0", "line 1", "power 1"), (5.0, 20.0))
    parameters = list(trainer.model.parameters())
    fast: list[list[torch.Tensor]] = []
    for _ in range(6):
        trainer.advance(look=False)
        readouts.update()
        fast.append([z.detach().clone() for z in trainer.optimizer.fast(parameters)])
    before = [p.detach().clone() for p in parameters]
    found = readouts.evaluate()
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))

    at_x, at_y = trainer.evaluate()
    assert found["x"] == at_x
    assert found["y"] == at_y
    assert found["line 0"]["loss"] == pytest.approx(at_x["loss"], abs=1e-6)
    means = [torch.stack([step[n] for step in fast]).mean(0) for n in range(len(parameters))]
    for readout, point in (("line 1", fast[-1]), ("power 1", means)):
        with torch.no_grad():
            for parameter, value in zip(parameters, point, strict=True):
                parameter.copy_(value)
        trainer.model.eval()
        assert found[readout]["loss"] == pytest.approx(trainer.measure(full=False)["loss"], abs=1e-6)


def test_a_power_that_is_not_kept_is_rebuilt() -> None:
    config = replace(small.study().run, optimizer=AdamW(lr=0.02, warmup_steps=2), steps=60)
    trainer = Trainer.build(config, ALONE, torch.device("cpu"))
    kept = Readouts(trainer, ("power 10",), (5.0, 10.0, 20.0))
    rebuilt = Readouts(trainer, ("power 10",), (5.0, 20.0))
    for _ in range(60):
        trainer.advance(look=False)
        kept.update()
        rebuilt.update()
    as_kept, as_rebuilt = (each.evaluate()["power 10"] for each in (kept, rebuilt))
    assert "residual" not in as_kept
    assert as_rebuilt["residual"] == pytest.approx(residual((5.0, 20.0), 10.0, 60), rel=1e-6)
    direct, again = as_kept["loss"], as_rebuilt["loss"]
    assert direct != again
    assert again == pytest.approx(direct, abs=1e-3)
