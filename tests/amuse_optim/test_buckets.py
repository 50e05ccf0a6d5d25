"""Flat buffers share the parameters' memory, and chunks hold every entry once."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, buckets, precision
from amuse_optim.buckets import Bucket, Slot, dense_order, flat
from amuse_optim.state import emptied
from tests.amuse_optim.training import take_steps

pytestmark = pytest.mark.usefixtures("no_grad")
SIZES = [5, 1, 40, 7, 16, 3]


@pytest.fixture
def no_grad() -> Iterator[None]:
    """As a step is taken: buffers are views of parameters."""
    with torch.no_grad():
        yield


def bucket(sizes: list[int], dtype: torch.dtype = torch.float32) -> Bucket:
    params = [nn.Parameter(torch.arange(float(size)).to(dtype)) for size in sizes]
    group = {"params": params, "stacked": False}
    slots = []
    for index, param in enumerate(params):
        param.grad = torch.ones_like(param)
        state = {"z": torch.full((sizes[index],), float(index)), "step": 4, "beta": 0.5}
        slots.append(Slot.of(group, index, state, ["z"]))
    return Bucket(group, 0, slots)


@pytest.mark.parametrize("bound", [1, 4, 16, 24, 1000])
def test_chunks_hold_every_entry_once_and_keep_their_bound(
    monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(buckets, "CHUNK_ENTRIES_ON_CPU", bound)
    given = bucket(SIZES)
    found: dict[str, list[Tensor]] = {"y": [], "z": []}
    for chunk in given.chunks():
        assert chunk.step == 5
        assert [len(y) for y in chunk.read("y")] == [len(z) for z in chunk.read("z")]
        assert sum(len(y) for y in chunk.read("y")) <= bound
        for name, pieces in found.items():
            pieces.extend(chunk.stored(name))
    for name, pieces in found.items():
        expected = torch.cat([slot.row[name] for slot in given.slots])
        assert sorted(torch.cat(pieces).tolist()) == sorted(expected.tolist())
        for piece in pieces:  # views: what is done to them is done to the parameter and its state
            piece.zero_()
    for slot in given.slots:
        assert not bool(slot.param.detach().any())
        assert not bool(slot.state["z"].any())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_flat_views_share_memory_in_both_formats(shape: tuple[int, ...]) -> None:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for tensor in (torch.zeros(shape), torch.zeros(shape).to(memory_format=last)):
        order = dense_order([tensor, tensor.clone()])
        assert order is not None
        flat(tensor, order).fill_(1.0)
        assert bool((tensor == 1).all())


def test_other_formats_are_told() -> None:
    plain = torch.zeros(2, 3, 4, 5)
    last = plain.to(memory_format=torch.channels_last)
    assert dense_order([plain, last]) is None
    assert dense_order([last], channels_last=False) is None
    assert dense_order([torch.zeros(4, 6).T]) is None


def test_a_gradient_in_another_format_is_read_entry_by_entry() -> None:
    param = nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    param.grad = torch.arange(120.0).view(2, 3, 4, 5)
    slot = Slot.of({"params": [param], "stacked": False}, 0, {}, [])
    slot.row["y"].copy_(slot.row["gradient"])
    assert torch.equal(param.detach(), param.grad)


def test_copies_are_put_back() -> None:
    param = nn.Parameter(torch.zeros(4, 6).T)
    param.grad = torch.ones(6, 4)
    slot = Slot.of({"params": [param], "stacked": False}, 0, {}, [])
    slot.row["y"].copy_(torch.arange(24.0))
    assert not bool(param.detach().any())
    slot.put_back()
    assert torch.equal(param.detach(), torch.arange(24.0).view(6, 4))


def test_reading_gives_the_precision_of_computation_and_writing_that_of_storage() -> None:
    given = bucket([4], torch.bfloat16)
    (chunk,) = given.chunks()
    (y,) = chunk.read("y")
    assert y.dtype == torch.float32
    (kept,) = chunk.write("y", [torch.full((4,), 1 + 2**-12)])
    assert torch.equal(kept, torch.ones(4))
    assert torch.equal(given.slots[0].param.detach(), torch.ones(4, dtype=torch.bfloat16))


def test_every_tensor_of_a_parameter_is_rounded_with_bits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, ...]] = []
    made = precision.rounding_generator

    def kept(device: torch.device, *key: int) -> torch.Generator:
        generator = made(device, *key)
        keys.append(tuple(torch.rand(4, generator=generator).tolist()))
        return made(device, *key)

    monkeypatch.setattr(precision, "rounding_generator", kept)
    weight = nn.Parameter(torch.randn(4, 4))
    take_steps(AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2, state_precision="lean"), range(1))
    assert len(keys) == len(set(keys)) >= 2


def test_tensors_that_another_rank_keeps_do_not_decide_the_order() -> None:
    """Ranks round with random bits that depend on it, and have to round alike."""
    parameter = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    parameter.grad = torch.ones_like(parameter)
    group = {"params": [parameter], "stacked": False}
    whole = {"z": parameter.detach().clone(), "momentum_buffer": torch.zeros_like(parameter.detach())}
    orders = []
    for momentum in (whole["momentum_buffer"], emptied(whole["momentum_buffer"])):
        state = whole | {"momentum_buffer": momentum, "step": 1, "beta": 0.5}
        slot = Slot.of(group, 0, state, ["z", "momentum_buffer"])
        orders.append(slot.order)
        assert slot.copies == []
        assert slot.row["momentum_buffer"].numel() == momentum.numel()
    assert orders == [(0, 2, 3, 1)] * 2
