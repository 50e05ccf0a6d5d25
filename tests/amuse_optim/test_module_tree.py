"""Wrappers change nothing: the same groups whatever stands around a model or its parts."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.optim.swa_utils import AveragedModel

from amuse_optim import param_groups
from tests.amuse_optim.routing import Parts

Wrap = Callable[[nn.Module], nn.Module]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3)
        self.fc = nn.Linear(8, 8)


class Net(nn.Module):
    """Every kind of layer that wrapping might hide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.rnn = nn.LSTM(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.fc = nn.Linear(8, 4)


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


def plain() -> nn.Module:
    return Parts(fc1=nn.Linear(6, 6), fc2=nn.Linear(6, 2))


def described(model: nn.Module) -> list[dict[str, object]]:
    """The groups without the parameters themselves."""
    return [{**g, "params": [(n, tuple(p.shape)) for n, p in g["params"]]} for g in param_groups(model)]


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("ranks") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")
    return wrapped


def fsdp1(model: nn.Module, use_orig_params: bool = True) -> nn.Module:
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def fsdp2(model: nn.Module) -> nn.Module:
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    return model


WRAPPERS: dict[str, Wrap] = {
    "compile": compiled,
    "DDP": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "checkpoint": checkpoint_wrapper,
    "FSDP1": fsdp1,
    "FSDP2": fsdp2,
    "averaged": AveragedModel,
}
ORDERS = [
    *((name,) for name in WRAPPERS),
    *(("DDP", "compile"), ("compile", "DDP"), ("compile", "checkpoint", "DDP"), ("compile", "FSDP1")),
]


@pytest.mark.filterwarnings("ignore:FSDP:UserWarning", "ignore:.*NO_SHARD.*", "ignore::FutureWarning")
@pytest.mark.requirement("C9")
@pytest.mark.parametrize("order", ORDERS, ids="(".join)
@pytest.mark.parametrize("build", [Net, sequential, plain], ids=["net", "sequential", "plain"])
def test_wrapped_as_a_whole(build: Callable[[], nn.Module], order: tuple[str, ...]) -> None:
    model = build()
    for name in reversed(order):
        model = WRAPPERS[name](model)
    assert described(model) == described(build())
    assert param_groups(model).notes == param_groups(build()).notes


@pytest.mark.requirement("C9")
@pytest.mark.parametrize("build", [Net, sequential, plain], ids=["net", "sequential", "plain"])
def test_wrapped_as_the_model_of_a_trainer_module(build: Callable[[], nn.Module]) -> None:
    def plainly_named(model: nn.Module) -> list[dict[str, object]]:
        groups = described(model)
        for group in groups:
            members: list[tuple[str, object]] = group["params"]
            group["params"] = [(name.removeprefix("model."), shape) for name, shape in members]
        return groups

    expected = described(build())
    assert plainly_named(Parts(model=build())) == expected
    assert plainly_named(Parts(model=compiled(build()), loss=nn.CrossEntropyLoss())) == expected
    assert plainly_named(compiled(Parts(model=checkpoint_wrapper(build())))) == expected


@pytest.mark.requirement("C9")
def test_wrapped_part_by_part() -> None:
    model = Net()
    for name in ("embed", "rnn", "normed", "fc"):
        setattr(model, name, checkpoint_wrapper(getattr(model, name)))
    for i, block in enumerate(model.blocks):
        block.conv = compiled(block.conv)
        model.blocks[i] = compiled(checkpoint_wrapper(block))
    assert described(model) == described(Net())
    assert described(compiled(model)) == described(Net())


@pytest.mark.requirement("C9")
def test_a_module_that_only_holds_another_keeps_its_name() -> None:
    one = Parts(encoder=nn.Linear(4, 4))
    assert param_groups(one)[0]["params"][0][0] == "encoder.weight"
    two = Parts(module=nn.Linear(4, 4), head=nn.Linear(4, 2))
    assert param_groups(two)[0]["params"][0][0] == "module.weight"


@pytest.mark.filterwarnings("ignore:FSDP:UserWarning", "ignore:.*NO_SHARD.*", "ignore::FutureWarning")
@pytest.mark.requirement("C9")
def test_flat_parameters_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"flat piece.*FSDP2 .*use_orig_params=True"):
        param_groups(fsdp1(Net(), use_orig_params=False))
    shard = nn.Linear(4, 4)
    shard.weight = nn.Parameter(torch.zeros(8))  # of two ranks, as use_orig_params=True leaves it
    with pytest.raises(ValueError, match=r"'shard.weight' of shape \(8,\) is a flat piece"):
        param_groups(Parts(shard=shard))
