"""The table of directions, and what a direction that moves entry by entry is given."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import buckets
from amuse_optim.buckets import Bucket, Chunk, Slot
from amuse_optim.directions import DIRECTIONS, ElementwiseDirection
from amuse_optim.directions.base import Shape
from amuse_optim.options import OPTIONS
from amuse_optim.schedule import Number


def test_the_table_knows_them_by_their_names_and_all_options() -> None:
    assert [direction.name for direction in DIRECTIONS.values()] == list(DIRECTIONS)
    for direction in DIRECTIONS.values():
        for name, option in direction.options.items():  # options of one name are one option
            assert (OPTIONS[name].default, OPTIONS[name].check) == (option.default, option.check)
    assert [name for name in DIRECTIONS if DIRECTIONS[name].for_matrices] == ["muon", "normuon"]


class Counted(ElementwiseDirection):
    """d = 3 (sum of the gradients so far)."""

    name = "counted"

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:  # noqa: ARG002
        return {"sum": shape}

    def update(self, chunk: Chunk) -> tuple[list[Tensor], Number]:
        sums = chunk.read("sum")
        torch._foreach_add_(sums, chunk.read("gradient"))
        return chunk.write("sum", sums), 3.0


def slots_of(dtype: torch.dtype, names: list[str]) -> tuple[dict[str, Any], list[Slot]]:
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in (5, 40, 3)]
    group = {"params": parameters, "stacked": False}
    slots = []
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.arange(parameter.numel()).to(dtype)
        state = {name: torch.full((parameter.numel(),), 2.0, dtype=dtype) for name in names}
        slots.append(Slot.of(group, index, {**state, "step": 1, "beta": 0.5}, names))
    return group, slots


@pytest.mark.parametrize("bound", [4, 16, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_entry_is_updated_once_and_state_is_kept(
    monkeypatch: pytest.MonkeyPatch, bound: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(buckets, "CHUNK_ENTRIES_ON_CPU", bound)
    group, slots = slots_of(dtype, ["sum"])
    found: list[float] = []
    for chunk, update, scale in Counted().updates(Bucket(group, 0, slots)):
        assert [len(part) for part in update] == [len(part) for part in chunk.stored("y")]
        assert all(part.dtype == torch.float32 for part in update)
        found += [scale * value for part in update for value in part.tolist()]
    sums = [2.0 + i for slot in slots for i in range(slot.param.numel())]
    assert sorted(found) == sorted(3.0 * value for value in sums)
    assert torch.cat([slot.state["sum"] for slot in slots]).tolist() == sums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sgd_s_direction_is_the_gradient(dtype: torch.dtype) -> None:
    group, slots = slots_of(dtype, [])
    assert DIRECTIONS["sgd"].state_shapes(group, (3,)) == {}
    ((_, update, scale),) = DIRECTIONS["sgd"].updates(Bucket(group, 0, slots))
    assert scale == 1.0
    for part, slot in zip(update, slots, strict=True):
        assert part.tolist() == list(range(slot.param.numel()))
