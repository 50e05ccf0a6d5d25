"""What surrounds the library: imports, frozen BatchNorm, a default device, gradients that share memory."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import (
    AMUSE,
    accept_weights,
    averaged,
    averaged_state_dict,
    param_groups,
    project,
    refresh_batch_norm,
    telemetry,
)


class Backbone(nn.Module):
    """Three BatchNorm layers behind one another, on inputs (n, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.plain = (
            nn.BatchNorm1d(2),
            nn.BatchNorm1d(2),
            nn.BatchNorm1d(2, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.body(self.stem(x)))


def refreshed(model: nn.Module, **options: Any) -> set[str]:
    """The layers whose statistics `refresh_batch_norm` computes anew."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)}
    for layer in layers.values():
        layer.running_mean.fill_(5.0)
        layer.num_batches_tracked.fill_(7)
    flags = [layer.training for layer in layers.values()]
    refresh_batch_norm(model, [torch.randn(8, 2), torch.randn(8, 2)], **options)
    assert [layer.training for layer in layers.values()] == flags
    for layer in layers.values():
        kept = layer.running_mean.eq(5.0).all()
        assert layer.num_batches_tracked == (7 if kept else 2)
    return {name for name, layer in layers.items() if not layer.running_mean.eq(5.0).any()}


@pytest.mark.requirement("B10")
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_whose_parameters_are_frozen_keeps_its_statistics(training: bool) -> None:
    model = Backbone().train(training)
    assert refreshed(model) == {"stem", "body", "plain"}
    model.stem.requires_grad_(False)
    assert refreshed(model) == {"body", "plain"}
    model.body.bias.requires_grad_(False)  # its weight is trained
    assert refreshed(model) == {"body", "plain"}


@pytest.mark.requirement("B10")
def test_batch_norm_in_eval_mode_within_a_training_model_keeps_its_statistics() -> None:
    model = Backbone().train()
    model.stem.eval()
    model.plain.eval()
    assert refreshed(model) == {"body"}
    model.training = False  # the model's own flag, as an evaluation sets it, tells nothing; other layers do
    assert refreshed(model) == {"body"}
    model.eval()  # nothing is left to tell by
    assert refreshed(model) == {"stem", "body", "plain"}


@pytest.mark.requirement("B10")
def test_a_filter_names_other_layers_that_keep_their_statistics() -> None:
    model = Backbone().eval()
    model.stem.requires_grad_(False)
    assert refreshed(model, layers=lambda name, _: name != "body") == {"plain"}
    assert refreshed(model, layers=lambda _, layer: layer.affine) == {"body"}
    assert refreshed(model, layers=lambda *_: False) == set()


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("options", [{}, {"capturable": True, "nonfinite": "ignore"}])
def test_torchs_default_device_changes_nothing(options: dict[str, Any]) -> None:
    def life() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(3, 4, device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu"))
        groups = [
            {"params": [model.weight], "direction": "normuon"},
            {"params": [model.bias], "direction": "adamw"},
            {"params": [nn.Parameter(torch.ones(2, 2, device="cpu"))], "direction": "muon"},
        ]
        optimizer = AMUSE(groups, lr=0.1, warmup_steps=2, **options)
        telemetry(optimizer)
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, device="cpu")
            optimizer.step()
        found = telemetry(optimizer)
        with averaged(optimizer):
            optimizer.load_state_dict(optimizer.state_dict())
        project(optimizer, lambda tensor: tensor.clamp_(-1, 1))
        accept_weights(optimizer)
        return found | averaged_state_dict(model, optimizer)

    with torch.device("meta"):  # as torch.set_default_device, for this block alone
        elsewhere = life()
    usual = life()
    assert elsewhere.keys() == usual.keys()
    for name, value in usual.items():
        assert elsewhere[name].device.type == "cpu"
        torch.testing.assert_close(elsewhere[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.requirement("A16")
@pytest.mark.parametrize("direction", ["muon", "normuon", "adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "weight_decay_at": "y"},
        {"beta1": 0.0, "rho": 0.0, "weight_decay": 0.3},
        {"parity": "published"},
        {"foreach": False},
    ],
    ids=str,
)
def test_a_gradient_in_the_parameters_memory_is_as_good_as_a_copy(
    direction: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    ends = []
    for shared in (True, False):
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((4, 4), (5, 4))]
        optimizer = AMUSE(parameters, direction=direction, lr=0.1, warmup_steps=2, t0_steps=3, **options)
        for _ in range(6):
            for parameter in parameters:
                parameter.grad = parameter.detach() if shared else parameter.detach().clone()
            optimizer.step()
        ends.append([p.detach().clone() for p in parameters] + [optimizer.state[p] for p in parameters])
    for ours, theirs in zip(*ends, strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)
        else:
            assert all(
                torch.equal(ours[name], theirs[name]) for name in ours if isinstance(ours[name], Tensor)
            )


@pytest.mark.requirement("A16")
def test_a_gradient_in_the_parameters_memory_gives_torchs_result() -> None:
    """With beta1 = 0 and no warm-up z is what SGD gives: w <- w - lr w."""
    ours, theirs = nn.Parameter(torch.full((3,), 8.0)), nn.Parameter(torch.full((3,), 8.0))
    optimizer = AMUSE([ours], direction="sgd", lr=0.25, warmup_steps=0, beta1=0.0, rho=0.0)
    torchs = torch.optim.SGD([theirs], lr=0.25)
    for _ in range(5):
        for parameter, one in ((ours, optimizer), (theirs, torchs)):
            parameter.grad = parameter.detach()
            one.step()
    assert torch.equal(ours, theirs)


@pytest.mark.requirement("B10")
def test_batch_norm_of_a_detector_in_training() -> None:
    """The usual idiom: `train()`, then frozen layers back into eval mode; evaluation in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].running_mean.fill_(5.0)
    model[0].requires_grad_(False)
    optimizer = AMUSE(param_groups(model), warmup_steps=2)
    for _ in range(3):
        model.train()
        model[0].eval()
        optimizer.zero_grad()
        model(torch.randn(8, 2)).square().mean().backward()
        optimizer.step()
    with averaged(optimizer):
        model.eval()
        refresh_batch_norm(model, [torch.randn(8, 2)])
    assert model[0].running_mean.eq(5.0).all()
    assert model[2].num_batches_tracked == 1


@pytest.mark.requirement("D6")
def test_importing_the_library_imports_nothing_but_torch_and_pythons_own() -> None:
    program = (
        "import sys, torch, torch.distributed.tensor; before = set(sys.modules); import amuse_optim;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*new - set(sys.stdlib_module_names) - {'torch', 'amuse_optim'})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
