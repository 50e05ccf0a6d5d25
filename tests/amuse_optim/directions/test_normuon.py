"""NorMuon: against its float64 oracle, and its state, whose shape is not its parameter's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged, param_groups, report
from tests.amuse_optim.test_equalities import SHAPES, difference, gradients, start
from tests.amuse_optim.training import take_steps
from tests.oracle.exact import ExactOracle


def equal(ours: list[nn.Parameter], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", ["match_rms", "spectral"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_its_oracle(scale: Any, dtype: torch.dtype, tolerance: float) -> None:
    options: dict[str, Any] = {
        "direction": "normuon",
        "warmup_steps": 10,
        "weight_decay": 0.1,
        "scale": scale,
    }
    parameters = [nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    optimizer = AMUSE(parameters, lr=0.02, orthogonalize_dtype=torch.float64, **options)
    oracle = ExactOracle(start(SHAPES), lr=0.02, **options)
    for step in range(100):
        grads: list[Any] = list(gradients(step, SHAPES))
        if step % 7 == 3:
            grads[1] = None
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else torch.tensor(grad, dtype=dtype)
        optimizer.step()
        oracle.step(grads, lr=0.02)
        for i, parameter in enumerate(parameters):
            assert difference(optimizer.state[parameter]["z"], oracle.z[i]) < tolerance
            assert difference(parameter, oracle.y[i]) < tolerance
    with averaged(optimizer):
        for i, parameter in enumerate(parameters):
            assert difference(parameter, oracle.x[i]) < tolerance


@pytest.mark.parametrize(
    ("shape", "options", "parts"),
    [
        ((12, 4), {"split_rows": (6, 4, 2)}, [(6, 4), (4, 4), (2, 4)]),
        ((12, 4), {"num_heads": 3}, [(4, 4)] * 3),
        ((3, 5, 4), {"stacked": True}, [(5, 4)] * 3),
        ((8, 2, 3, 3), {"conv_groups": 2}, [(4, 18)] * 2),
    ],
)
def test_every_matrix_has_rows_of_its_own(
    shape: tuple[int, ...], options: dict[str, Any], parts: list[tuple[int, int]]
) -> None:
    """A parameter of several matrices moves as those matrices would."""
    whole = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    single = [nn.Parameter(torch.zeros(part, dtype=torch.float64)) for part in parts]
    settings: dict[str, Any] = {"direction": "normuon", "lr": 0.1, "warmup_steps": 3}
    optimizer, apart = AMUSE([whole], **settings, **options), AMUSE(single, **settings)
    for step in range(6):
        gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        whole.grad, flat, start = gradient, gradient.reshape(-1), 0
        for parameter in single:
            parameter.grad = flat[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
        optimizer.step()
        apart.step()
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in single])
    torch.testing.assert_close(whole.detach().reshape(-1), expected, rtol=0, atol=1e-12)
    rows = torch.cat([apart.state[parameter]["row_exp_avg_sq"] for parameter in single])
    torch.testing.assert_close(optimizer.state[whole]["row_exp_avg_sq"].reshape(-1), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_have_a_root_mean_square_of_exactly_a_fifth(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(96, 160))
    optimizer = AMUSE(
        [parameter], direction="normuon", lr=1.0, warmup_steps=0, rho=0.0, orthogonalize_dtype=dtype
    )
    parameter.grad = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    z = optimizer.state[parameter]["z"]
    assert float(z.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-6)
    rows = z.square().mean(1).sqrt()
    assert float(rows.max() / rows.min()) == pytest.approx(
        1.0, rel=1e-3
    )  # at the first step all rows are alike


def test_zero_maps_to_zero() -> None:
    for scale in ("match_rms", "spectral"):
        parameter = nn.Parameter(torch.ones(4, 3))
        optimizer = AMUSE([parameter], direction="normuon", lr=1.0, warmup_steps=0, rho=0.0, scale=scale)
        for _ in range(2):
            parameter.grad = torch.zeros(4, 3)
            optimizer.step()
        assert torch.equal(parameter.detach(), torch.ones(4, 3))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_resumed_run_is_the_same(mode: str) -> None:
    def build() -> tuple[list[nn.Parameter], AMUSE]:
        parameters = [nn.Parameter(torch.tensor(p)) for p in start(SHAPES)]
        return parameters, AMUSE(parameters, direction="normuon", lr=0.05, warmup_steps=3)

    parameters, optimizer = build()
    take_steps(optimizer, range(5))
    if mode == "eval":
        optimizer.eval()
    saved = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in parameters]))
    optimizer.train()
    take_steps(optimizer, range(5, 9))
    others, resumed = build()
    resumed.load_state_dict(saved[0])
    for other, value in zip(others, saved[1], strict=True):
        other.data.copy_(value)
    resumed.train()
    take_steps(resumed, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))

    wrong = copy.deepcopy(saved[0])
    wrong["state"][0]["row_exp_avg_sq"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"holds a row_exp_avg_sq of shape \(7,\)"):
        resumed.load_state_dict(wrong)


def test_rows_stay_in_float32_and_follow_a_conversion() -> None:
    layer = nn.Linear(6, 4, bias=False)
    optimizer = AMUSE([layer.weight], direction="normuon", warmup_steps=2, state_precision="lean")
    layer.bfloat16()
    take_steps(optimizer, range(3))
    state = optimizer.state[layer.weight]
    assert (state["row_exp_avg_sq"].dtype, state["row_exp_avg_sq"].shape) == (torch.float32, (4,))
    assert state["momentum_buffer"].dtype == torch.bfloat16


def test_channels_last_kernels_are_the_same_matrices() -> None:
    values = torch.tensor(start([(8, 3, 3, 3)])[0])
    plain = nn.Parameter(values.clone())
    last = nn.Parameter(values.to(memory_format=torch.channels_last))
    for parameter in (plain, last):
        optimizer = AMUSE([parameter], direction="normuon", lr=0.05, warmup_steps=2)
        take_steps(optimizer, range(4))
    equal([last], [plain])


def test_groups_and_report() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    groups = param_groups(model, matrices="normuon")
    assert [group["direction"] for group in groups] == ["normuon", "adamw"]
    assert "96 normuon" in report(groups)
    assert AMUSE(groups, lr=0.02, lr_rest=0.005, warmup_steps=2, row_beta2=0.9).param_groups[0]["lr"] == 0.02
    with pytest.raises(ValueError, match="matrices must be one of 'muon', 'normuon', got 'adamw'"):
        param_groups(model, matrices="adamw")
    with pytest.raises(ValueError, match=r"row_beta2 must be finite and in \[0, 1\), got 1.0"):
        AMUSE(groups, warmup_steps=2, row_beta2=1.0)
