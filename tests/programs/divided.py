"""What the processes of test_ranks.py do: `torchrun ... -m tests.programs.divided CASE ...`.

A case is `model/way/dtype/steps`: steps with given gradients on parameters that lie on the ranks in this way
equal those of one process; with "training" before the model, steps with gradients of its own.
"""

import gc
import os
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from amuse_lab.launch import exit_rank
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_optim import AMUSE, averaged, param_groups, telemetry
from amuse_optim.sharding import held_here
from benchmarks.scaling import planned
from benchmarks.scaling_models import of_model, on
from benchmarks.traffic import Traffic, counted
from tests.programs.mixture import mixture

TOLERANCE = {"float64": 1e-10, "float32": 1e-6}
# Shapes that ranks share unevenly or not at all, and every way to cut a parameter into matrices.
AWKWARD: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "72 rows": ((72, 20), {}),
    "one row": ((1, 7), {}),
    "one column": ((9, 1), {}),
    "three rows": ((3, 11), {}),
    "tall": ((31, 6), {}),
    "no entries": ((4, 0), {}),
    "kernel": ((6, 3, 3, 3), {}),
    "grouped kernel": ((6, 2, 3), {"conv_groups": 3}),
    "unequal splits": ((10, 8), {"split_rows": (2, 5, 3)}),
    "heads": ((12, 8), {"split_rows": (4, 8), "num_heads": 2}),
    "stored the other way": ((8, 12), {"transposed": True, "split_rows": (2, 4, 6)}),
    "experts": ((4, 5, 6), {"stacked": True}),
    "uneven experts": ((3, 6, 4), {"stacked": True, "transposed": True}),
    "rows apart": ((7, 9), {"direction": "normuon", "split_rows": (3, 4)}),
    "rows of experts": ((4, 5, 3), {"direction": "normuon", "stacked": True, "scale": "spectral"}),
    "rows of the other way": ((6, 10), {"direction": "normuon", "transposed": True, "num_heads": 5}),
    "embedding": ((13, 5), {"direction": "adamw"}),
    "vector": ((5,), {"direction": "adamw", "auxiliary_momentum": 0.9}),
    "plain": ((2, 3), {"direction": "sgd"}),
}


class Awkward(nn.Module):
    """Parameters of these shapes."""

    def __init__(self) -> None:
        super().__init__()
        for name, (shape, _) in AWKWARD.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [(name, getattr(self, name))], "direction": "muon"} | options
            for name, (_, options) in AWKWARD.items()
        ]


def build(kind: str, dtype: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "awkward":
        return Awkward().to(getattr(torch, dtype))
    settings = ModelConfig(n_embd=24, n_head=2, n_layer=2, context=16, mlp_multiple=10, vocabulary=37)
    return (mixture if kind == "mixture" else Llama)(settings).to(getattr(torch, dtype))


def optimizer_of(model: nn.Module, **options: Any) -> AMUSE:
    groups = model.groups() if isinstance(model, Awkward) else param_groups(model)
    settings: dict[str, Any] = {"lr": 0.02, "warmup_steps": 5, "weight_decay": 0.1}
    return AMUSE(groups, orthogonalize_dtype=None, **settings | options)


REPLICATED: dict[str, dict[str, Any]] = {"ddp": {}, "ddp, divided state": {"shard_state": True}}


def told(way: str) -> dict[str, Any]:
    """What the optimizer is told of the ranks."""
    return {"process_group": distributed.group.WORLD, **REPLICATED[way]} if way in REPLICATED else {}


def spread(model: nn.Module, way: str) -> None:
    """Put the parameters on the ranks; replicated ones are left as they are."""
    ranks = distributed.get_world_size()
    if way in REPLICATED:
        return
    if way == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    elif way == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "parts")))
    elif way in ("rows", "columns"):
        mesh = init_device_mesh("cpu", (ranks,))
        place(model, mesh, 0 if way == "rows" else 1, least=1)
    elif way == "stages":  # every two ranks have a mesh of their own, of two dimensions
        mesh = init_device_mesh("cpu", (ranks // 2, 1, 2), mesh_dim_names=("stages", "copies", "parts"))
        place(model, mesh["copies", "parts"], 0, least=1)
    elif way == "crossed":  # in another order than that of the ranks
        mesh = DeviceMesh("cpu", [[0, 2], [1, 3]], mesh_dim_names=("copies", "parts"))
        place(model, mesh, 0, least=1)
    else:  # FSDP2 over tensor parallelism
        mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
        place(model, mesh["tensor"], 0 if way == "fsdp of rows" else 1, least=2)
        fully_shard(model, mesh=mesh["data"])


def place(model: nn.Module, mesh: DeviceMesh, dim: int, least: int) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            # torch loses the values of parameters of which some ranks have nothing, if FSDP2 comes on top.
            cut = parameter.ndim > dim and parameter.shape[dim] >= least
            placement = Shard(dim) if cut else Replicate()
            placements = [*[Replicate()] * (mesh.ndim - 1), placement]
            whole = distribute_tensor(parameter.detach(), mesh, placements)
            setattr(module, name, nn.Parameter(whole))


def own_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """What this rank has of the gradient of a parameter."""
    if not isinstance(parameter, DTensor):
        return whole.clone()
    box = held_here(parameter).box
    part = whole[tuple(slice(*span) for span in box)].contiguous()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in model.parameters()
    ]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def equal(model: nn.Module, expected: nn.Module, tolerance: float) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        difference = (whole(ours.detach()) - theirs.detach()).abs().max() if theirs.numel() else 0.0
        assert difference <= tolerance, f"{name} differs by {difference}"


def same_on_all_ranks(model: nn.Module) -> None:
    """To the bit, where every rank has all of them."""
    for parameter in model.parameters():
        copies = [torch.empty_like(parameter) for _ in range(distributed.get_world_size())]
        distributed.all_gather(copies, parameter.detach())
        assert all(torch.equal(copy, copies[0]) for copy in copies)


def as_cheap_as_promised(traffic: Traffic, model: nn.Module, steps: int) -> None:
    """No DTensor is gathered; two collectives at most for a group's matrices of one shape."""
    exchanged = traffic.calls.pop("all_to_all_single", 0) + traffic.calls.pop("all_gather", 0)
    agreed = traffic.calls.pop("all_reduce", 0)
    assert not traffic.calls, f"{traffic.calls} were called"
    groups = optimizer_of(model).param_groups
    shapes = {
        (i, tuple(parameter.shape))
        for i, group in enumerate(groups)
        for parameter in group["params"]
        if group["direction"] in ("muon", "normuon")
    }
    assert exchanged <= 2 * len(shapes) * steps
    assert agreed <= 2 * (2 * steps + 1)  # two sets of ranks at most: asked, with telemetry; one comparison


def compare(kind: str, way: str, dtype: str, steps: int) -> None:
    expected, model = build(kind, dtype), build(kind, dtype)
    usual = optimizer_of(expected)
    spread(model, way)
    equal(model, expected, 0.0)
    optimizer = optimizer_of(model, **told(way))
    for each in (usual, optimizer):
        telemetry(each)
    with counted() as traffic:
        for step in range(steps):
            fed = gradients(expected, step)
            for parameter, gradient in zip(model.parameters(), fed, strict=True):
                parameter.grad = own_part(gradient, parameter)
            optimizer.step()
    as_cheap_as_promised(traffic, expected, steps)
    if kind == "mixture" and dtype == "float64" and way in ("ddp", "fsdp", "hsdp"):
        plan = planned(list(of_model(expected, on(way, distributed.get_world_size()))))
        assert traffic.bytes_sent == 8 * steps * plan.entries_sent[distributed.get_rank()]
    for step in range(steps):
        for parameter, gradient in zip(expected.parameters(), gradients(expected, step), strict=True):
            parameter.grad = gradient
        usual.step()
    equal(model, expected, TOLERANCE[dtype])
    with averaged(usual), averaged(optimizer):
        equal(model, expected, TOLERANCE[dtype])
        if way in REPLICATED:
            same_on_all_ranks(model)
    ours = telemetry(optimizer)
    for name, value in telemetry(usual).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, equal_nan=True, msg=name)


def counting_up(seed: int) -> Tensor:
    """Sequences that a model can learn to go on with: each token is the one before, plus 1."""
    starts = torch.randint(0, 37, (8, 1), generator=torch.Generator().manual_seed(seed))
    return (starts + torch.arange(17)) % 37


def step_with(optimizer: AMUSE, module: nn.Module, rows: Tensor) -> None:
    optimizer.zero_grad()
    module(rows[:, :-1], rows[:, 1:]).backward()
    optimizer.step()


def train(kind: str, way: str, dtype: str, steps: int) -> None:
    """Every rank has its rows of a batch, and one process all of them.

    In float64 they end alike. In float32 training amplifies rounding: the loss differs by less than that of
    processes that see other batches.
    """
    expected, model = build(kind, dtype), build(kind, dtype)
    usual = optimizer_of(expected)
    spread(model, way)
    optimizer = optimizer_of(model, **told(way))
    parallel = nn.parallel.DistributedDataParallel(model) if way in REPLICATED else model
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    for step in range(steps):
        tokens = counting_up(step)
        step_with(usual, expected, tokens)
        step_with(optimizer, parallel, tokens[rank::ranks])
    if dtype == "float64":
        equal(model, expected, 1e-9)
        with averaged(usual), averaged(optimizer):
            equal(model, expected, 1e-9)
        return
    with averaged(usual), averaged(optimizer):
        ours, theirs = loss_of(model), loss_of(expected)
    others = []
    for seed in range(1, 4):
        other = build(kind, dtype)
        its = optimizer_of(other)
        for step in range(steps):
            step_with(its, other, counting_up(1000 * seed + step))
        with averaged(its):
            others.append(loss_of(other))
    assert abs(ours - theirs) < max(others) - min(others) < theirs < 3.0  # of ln 37 = 3.6 in the beginning


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    tokens = counting_up(-1)
    return float(model(tokens[:, :-1], tokens[:, 1:]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for case in sys.argv[1:]:
        kind, way, dtype, steps = case.split("/")
        try:
            taken = train if kind.startswith("training ") else compare
            taken(kind.removeprefix("training "), way, dtype, int(steps))
        except BaseException as error:
            error.add_note(f"in {case} on rank {distributed.get_rank()}")
            raise
        if distributed.get_rank() == 0:
            print(f"equal {case}", flush=True)
    gc.collect()  # torch 2.11 aborts at exit where a sharded module outlives its process group
    distributed.destroy_process_group()
    if "RANK" in os.environ:
        exit_rank(0)
