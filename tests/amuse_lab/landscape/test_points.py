import pytest
import torch

from amuse_lab.landscape.points import Points, between, hidden_matrices, objective, trained
from amuse_lab.optimizers import AdamW, Amuse
from tests.amuse_lab.landscape.runs import BETA, trainer


def test_y_lies_between_z_and_x() -> None:
    run = trainer(steps=6)
    points = Points.of(run)
    for name, y in points.y.items():
        torch.testing.assert_close(y, (1 - BETA) * points.z[name] + BETA * points.x[name])
        assert torch.equal(y, trained(run.model)[name])
    assert any(not torch.equal(points.x[name], points.z[name]) for name in points.x)


@pytest.mark.parametrize(
    "optimizer",
    [AdamW(lr=0.01, warmup_steps=2), Amuse(lr=0.01, warmup_steps=2, t0_steps=2)],
    ids=["adamw", "amuse before the first step"],
)
def test_without_an_average_they_are_one(optimizer: AdamW | Amuse) -> None:
    points = Points.of(trainer(optimizer))
    assert all(torch.equal(points.x[name], points.z[name]) for name in points.x)


def test_they_are_copies() -> None:
    run = trainer(steps=3)
    points = Points.of(run)
    kept = {name: value.clone() for name, value in points.z.items()}
    run.advance(look=False)
    assert all(torch.equal(points.z[name], value) for name, value in kept.items())


def test_hidden_matrices_are_those_of_muon() -> None:
    names = hidden_matrices(trainer().model)
    assert set(names) == {
        f"blocks.0.{part}.weight"
        for part in ("attention.qkv", "attention.projection", "mlp.gate", "mlp.up", "mlp.projection")
    }


@pytest.mark.parametrize("micro_batch", [None, 1], ids=["whole", "row by row"])
def test_the_objective_is_the_training_loss_on_batches_after_the_run(micro_batch: int | None) -> None:
    run = trainer(steps=2)
    object.__setattr__(run.config, "micro_batch", micro_batch)
    loss = objective(run, 3)
    with torch.no_grad():
        losses = [run.task.loss(run.model, run.task.batch(30 + n)) for n in range(3)]
    torch.testing.assert_close(loss.value(Points.of(run).y), torch.stack(losses).mean())
    assert len(loss.batches) == (3 if micro_batch is None else 6)


def test_activation_checkpointing_is_off_for_the_objective_alone() -> None:
    """`torch.func` does not take it; the steps that follow the measurement need it again."""
    run = trainer(steps=1)
    loss = objective(run, 1)
    parameters = Points.of(run).y
    expected = loss.gradient(parameters)
    run.model.checkpointing = True
    found = loss.gradient(parameters)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run.model.checkpointing


def test_between() -> None:
    start, end = {"w": torch.tensor([0.0, 8.0])}, {"w": torch.tensor([4.0, 0.0])}
    assert between(start, end, 0.25)["w"].tolist() == [1.0, 6.0]
