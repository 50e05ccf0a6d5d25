"""Every number of `telemetry` against a computation from x, y and z of the reference."""

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, AMUSEReference, averaged, telemetry
from tests.amuse_optim.training import take_steps


def build(optimizer_class: type[AMUSE]) -> tuple[list[nn.Parameter], AMUSE]:
    shapes = [(6, 4), (3, 5), (7,)]
    parameters = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in shapes]
    groups = [
        {"params": parameters[:2], "direction": "muon"},
        {"params": parameters[2:], "direction": "adamw"},
    ]
    return parameters, optimizer_class(groups, lr=0.1, warmup_steps=4, weight_decay=0.1)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.requirement("E1")
def test_numbers_equal_those_of_the_stored_sequences(mode: str) -> None:
    _, optimizer = build(AMUSE)
    references, reference = build(AMUSEReference)
    telemetry(optimizer)
    for seed in range(9):
        take_steps(optimizer, range(seed, seed + 1))
        before = [reference.state[r]["z"].clone() for r in references]
        take_steps(reference, range(seed, seed + 1))
    if mode == "eval":
        optimizer.eval()
    values = telemetry(optimizer)

    for index, members in ((0, references[:2]), (1, references[2:])):
        label = f"{index}_{'muon' if index == 0 else 'adamw'}"
        states = [reference.state[member] for member in members]
        group = reference.param_groups[index]

        def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([tensor.flatten() for tensor in tensors])

        x, y, z = (flat([state[name] for state in states]) for name in "xyz")
        assert float(values[f"{label}/distance_xz"]) == pytest.approx(float((x - z).norm()), rel=1e-9)
        assert float(values[f"{label}/distance_yx"]) == pytest.approx(float((y - x).norm()), rel=1e-9)
        old = flat(before[:2] if index == 0 else before[2:])
        direction = (old * (1 - 0.1 * 0.1) - z) / 0.1
        rms = float(direction.square().mean().sqrt())
        assert float(values[f"{label}/update_rms"]) == pytest.approx(rms, rel=1e-9)
        assert float(values[f"{label}/lr"]) == pytest.approx(0.1)
        assert float(values[f"{label}/beta"]) == pytest.approx(group["beta_t"])
        assert float(values[f"{label}/c"]) == pytest.approx(group["c_t"])
        assert float(values[f"{label}/window"]) == pytest.approx(1 / group["c_t"] - 1)


@pytest.mark.requirement("E1")
def test_orthogonality_error_is_that_of_the_matrices() -> None:
    """0 for the exact polar factor; the root mean square over matrices otherwise."""
    errors = []

    def record(stack: torch.Tensor) -> torch.Tensor:
        for matrix in stack:
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            errors.append(float((gram - torch.eye(len(gram))).square().sum()) / len(gram))
        return stack

    for method in ("exact", record):
        parameters = [nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in ((6, 4), (3, 5))]
        optimizer = AMUSE(parameters, direction="muon", warmup_steps=4, orthogonalize=method)
        telemetry(optimizer)
        take_steps(optimizer, range(1, 2))
        value = float(telemetry(optimizer)["0_muon/orthogonality_error"])
        expected = (sum(errors) / len(errors)) ** 0.5 if errors else 0.0
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.requirement("E1")
def test_nothing_is_measured_before_it_is_asked_for_and_nothing_is_changed() -> None:
    parameters, optimizer = build(AMUSE)
    others, unobserved = build(AMUSE)
    take_steps(optimizer, range(1))
    take_steps(unobserved, range(1))
    assert optimizer.measurements is None
    first = telemetry(optimizer)
    assert bool(first["0_muon/update_rms"].isnan())
    assert "1_adamw/orthogonality_error" not in first
    for seed in range(1, 5):
        take_steps(optimizer, range(seed, seed + 1))
        take_steps(unobserved, range(seed, seed + 1))
        with averaged(optimizer):
            telemetry(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert bool(telemetry(optimizer)["0_muon/update_rms"].isfinite())


def test_telemetry_of_a_captured_schedule_keeps_its_values() -> None:
    optimizer = AMUSE(
        [nn.Parameter(torch.ones(3))],
        direction="sgd",
        lr=0.01,
        warmup_steps=4,
        capturable=True,
        nonfinite="ignore",
    )
    told = []
    for step in range(4):
        take_steps(optimizer, range(step, step + 1))
        told.append(telemetry(optimizer))
    rates = [next(float(value) for name, value in each.items() if name.endswith("/lr")) for each in told]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
