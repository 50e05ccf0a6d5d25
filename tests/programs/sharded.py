"""What each of torchrun's processes does for `test_sharding.py`: the same steps as one process, on shards."""

import gc
import os
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from amuse_optim import AMUSE, accept_weights, averaged, param_groups, project, telemetry

OPTIONS: list[dict[str, Any]] = [
    {},
    {"auxiliary_momentum": 0.9, "weight_decay_at": "y"},
    {"foreach": False},
    {"orthogonalize": "exact"},
    {"matrices": "normuon"},
    {"beta1": 0.0, "rho": 0.0},
    {"columns": True},
    {"columns": True, "matrices": "normuon"},
    {"equal_splits": True, "matrices": "normuon"},
    {"plain": True, "auxiliary_momentum": 0.9},
]


def model() -> nn.Module:
    """Rows that two and three processes share evenly, unevenly, and not at all."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 1, bias=False), nn.LayerNorm(1), nn.Linear(1, 2)
    return nn.Sequential(*layers).double()


def gradients(step: int, network: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    shapes = [parameter.shape for parameter in network.parameters()]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def build(network: nn.Module, options: dict[str, Any]) -> AMUSE:
    options = dict(options)
    matrices = options.pop("matrices", "muon")
    overrides: list[Any] = [("2.weight", matrices)]
    if options.pop("columns", False):  # sharded along its inputs, split along its outputs
        overrides.append(("0.weight", {"transposed": True, "split_rows": (2, 4)}))
    if options.pop("equal_splits", False):  # several matrices of one parameter in a batch
        overrides.append(("0.weight", {"split_rows": (2, 2, 4)}))
    groups = param_groups(network, matrices=matrices, overrides=overrides)
    return AMUSE(groups, lr=0.05, warmup_steps=3, weight_decay=0.1, **options)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(options: dict[str, Any]) -> None:
    options = dict(options)
    plain = options.pop("plain", False)  # biases and norms, which every rank has whole
    expected = model()
    usual = build(expected, options)
    sharded = model()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(sharded, mesh=mesh, ignored_params={p for p in sharded.parameters() if plain and p.ndim == 1})
    optimizer = build(sharded, options)
    for each in (usual, optimizer):
        telemetry(each)
    for step in range(8):
        for parameter, gradient in zip(expected.parameters(), gradients(step, expected), strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(sharded.parameters(), gradients(step, expected), strict=True):
            places = getattr(parameter, "placements", None)
            parameter.grad = (
                gradient if places is None else distributed.tensor.distribute_tensor(gradient, mesh, places)
            )
        usual.step()
        optimizer.step()
    equal(expected, sharded)
    with averaged(usual), averaged(optimizer):
        equal(expected, sharded)
    equal(expected, sharded)
    for name, value in telemetry(usual).items():
        torch.testing.assert_close(telemetry(optimizer)[name], value, rtol=1e-9, atol=1e-12)


def equal(expected: nn.Module, sharded: nn.Module) -> None:
    for ours, theirs in zip(sharded.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(whole(ours.detach()), theirs.detach(), rtol=1e-9, atol=1e-10)


def compute_with_what_the_parameters_hold() -> None:
    """Forward passes without a backward one, after which FSDP2 keeps what it has gathered, in between."""
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
        networks.append(nn.Sequential(*layers).double())
    fully_shard(networks[1], mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    optimizers = [AMUSE(param_groups(network), lr=0.05, warmup_steps=3) for network in networks]

    def outputs(step: int) -> list[Tensor]:
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return [network(inputs) for network in networks]

    def agree(step: int) -> Tensor:
        with torch.no_grad():
            expected, ours = outputs(step)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
        return expected

    for step in range(6):
        for output, optimizer in zip(outputs(step), optimizers, strict=True):
            output.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        y = agree(step)
        with averaged(optimizers[0]), averaged(optimizers[1]):
            x = agree(step)
        assert torch.equal(agree(step), y)
        assert step == 0 or not torch.equal(x, y)
        for optimizer in optimizers:
            project(optimizer, lambda tensor: tensor.clamp_(-0.3, 0.3))
        agree(step)
        for optimizer in optimizers:
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.9)
            accept_weights(optimizer)
        agree(step)


def refuse_together() -> None:
    """A gradient that is not finite on one process stops all of them, and nothing has moved."""
    network = model()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(network, mesh=mesh)
    optimizer = build(network, {})
    before = [parameter.detach().to_local().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    if distributed.get_rank() == 0:
        next(network.parameters()).grad.to_local()[0, 0] = torch.nan
    whose = "the gradient of parameter" if distributed.get_rank() == 0 else "gradients on another rank"
    with pytest.raises(FloatingPointError, match=whose):
        optimizer.step()
    for parameter, kept in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter.detach().to_local(), kept)


def decompose_what_one_process_has() -> None:
    """All shards of the others are empty; they take part in every collective all the same, and once."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    start, gradient = torch.arange(4.0).view(1, 4), torch.ones(1, 4)
    found = []
    for of in (
        lambda value: value.clone(),
        lambda value: distributed.tensor.distribute_tensor(value, mesh, [Shard(0)]),
    ):
        parameter = nn.Parameter(of(start))
        optimizer = AMUSE([parameter], direction="muon", lr=0.1, warmup_steps=2, orthogonalize="exact")
        for _ in range(2):
            parameter.grad = of(gradient)
            optimizer.step()
        found.append(whole(parameter.detach()))
    torch.testing.assert_close(found[1], found[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for options in OPTIONS:
        compare(options)
    compute_with_what_the_parameters_hold()
    refuse_together()
    decompose_what_one_process_has()
    gc.collect()  # torch 2.11 aborts at exit where a sharded module outlives its process group
    distributed.destroy_process_group()
    print("equal", flush=True)
    os._exit(0)  # a thread of gloo that still holds a tensor aborts the interpreter's finalization
