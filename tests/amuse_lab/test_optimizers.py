from collections.abc import Callable

import pytest
import torch
from torch import nn

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.optimizers import OPTIMIZERS, AdamW, Amuse, Muon
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.tasks.lm.model import Llama
from tests.amuse_lab.conftest import TINY_MODEL

Make = Callable[..., RunConfig]
NAMES = ["amuse", "sf-adamw", "muon", "adamw"]


def trained(config: RunConfig, steps: int = 3) -> tuple[Llama, TrainingOptimizer]:
    torch.manual_seed(0)
    model = Llama(TINY_MODEL)
    optimizer = config.optimizer.build(model, steps=10)
    for _ in range(steps):
        model(torch.arange(16)[None]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def values(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_registry_and_recipe_agree(tiny: Make) -> None:
    assert list(OPTIMIZERS) == NAMES
    assert all(type(tiny(name).optimizer) is kind for name, kind in OPTIMIZERS.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_every_parameter(tiny: Make, name: str) -> None:
    before = values(trained(tiny(name), steps=0)[0])
    after = values(trained(tiny(name), steps=2)[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_averaged_holds_another_point_and_gives_y_back_exactly(tiny: Make, name: str) -> None:
    model, optimizer = trained(tiny(name))
    y = values(model)
    with optimizer.averaged():
        x = values(model)
    assert same(y, values(model))
    assert same(x, y) is not optimizer.averages


@pytest.mark.parametrize("name", NAMES)
def test_evaluating_does_not_change_the_trajectory(tiny: Make, name: str) -> None:
    model, optimizer = trained(tiny(name), steps=2)
    with optimizer.averaged():
        pass
    model(torch.arange(16)[None]).square().mean().backward()
    optimizer.step()
    assert same(values(model), values(trained(tiny(name), steps=3)[0]))


@pytest.mark.parametrize("name", NAMES)
def test_averaged_gives_y_back_when_evaluation_fails(tiny: Make, name: str) -> None:
    model, optimizer = trained(tiny(name))
    y = values(model)
    with pytest.raises(RuntimeError, match="inside"), optimizer.averaged():
        raise RuntimeError("inside")
    assert same(y, values(model))


def test_scheduled_learning_rate_starts_and_ends_at_a_hundredth() -> None:
    model = Llama(TINY_MODEL)
    optimizer = AdamW(lr=0.5, warmup_steps=2).build(model, steps=5)
    used = []
    for _ in range(5):
        model(torch.arange(16)[None]).square().mean().backward()
        optimizer.step()
        used.append(optimizer.telemetry()["lr"])
    assert used[0] == 0.005
    assert max(used) == used[2] == 0.5
    assert used[4] == 0.005


def test_telemetry_names_lr_and_beta_where_there_is_one(tiny: Make) -> None:
    assert trained(tiny("amuse"))[1].telemetry()["beta"] == 0.6
    assert trained(tiny("sf-adamw"))[1].telemetry()["beta"] == 0.9
    assert "beta" not in trained(tiny("muon"))[1].telemetry()
    assert all(trained(tiny(name))[1].telemetry()["lr"] > 0 for name in NAMES)


@pytest.mark.parametrize("tied", [True, False])
def test_adamw_decays_matrices_and_an_untied_head_only(tied: bool) -> None:
    from dataclasses import replace

    model = Llama(replace(TINY_MODEL, tied=tied))
    still = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = AdamW(lr=0.5, warmup_steps=0, weight_decay=0.5).build(model, steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(still[name], parameter)}
    assert moved == {name for name in still if "norm" not in name and name != "embedding.weight"}


def test_muon_decays_the_rest_only() -> None:
    model = Llama(TINY_MODEL)
    still = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Muon(lr=0.5, lr_rest=0.5, warmup_steps=0, weight_decay=0.5).build(model, steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(still[name], parameter)}
    assert moved == {name for name in still if "norm" in name or name == "embedding.weight"}


def test_what_the_library_rejects_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match="t0_steps"):
        Amuse(lr=0.01, warmup_steps=100, t0_steps=1).build(Llama(TINY_MODEL), steps=10)
