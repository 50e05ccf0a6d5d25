"""Operations on lists equal those on single tensors, however the lists are cut."""

import pytest
import torch
from torch import Tensor

from amuse_optim import directions, sequences, tiles
from amuse_optim.sequences import DecayAt

SIZES = [5, 1, 40, 7, 16, 3]


def random(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def column(seed: int) -> list[Tensor]:
    return [random(size, 100 * seed + i) for i, size in enumerate(SIZES)]


@pytest.mark.parametrize("bound", [1, 4, 16, 24, 1000])
def test_tiles_hold_every_entry_once_and_keep_their_bound(
    monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(tiles, "TILE_ENTRIES_ON_CPU", bound)
    first, second = column(0), column(1)
    expected = torch.cat(first), torch.cat(second)
    found: list[list[Tensor]] = [[], []]
    for tile in tiles.tiles(first, second):
        assert [len(piece) for piece in tile[0]] == [len(piece) for piece in tile[1]]
        assert sum(len(piece) for piece in tile[0]) <= bound
        for pieces, whole in zip(tile, found, strict=True):
            whole.extend(pieces)
    for pieces, whole in zip(found, expected, strict=True):
        together = torch.cat(pieces)
        assert sorted(together.tolist()) == sorted(whole.tolist())
    for tensor in (*found[0], *found[1]):  # views: what is done to them is done to the tensors
        tensor.zero_()
    assert all(bool((tensor == 0).all()) for tensor in first + second)


def test_flat_views_share_memory_in_both_formats_and_refuse_others() -> None:
    plain = torch.zeros(2, 3, 4, 5)
    last = plain.to(memory_format=torch.channels_last)
    last3d = torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    for tensor in (plain, last, last3d):
        views = tiles.flat([tensor, tensor.clone()])
        assert views is not None
        views[0].fill_(1.0)
        assert bool((tensor == 1).all())
    assert tiles.flat([plain, last]) is None
    assert tiles.flat([torch.zeros(4, 6).T]) is None


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_on_lists_equals_single_tensors_to_the_bit(nesterov: bool, dtype: torch.dtype) -> None:
    gradients, buffers = column(0), column(1)
    updates = [torch.empty(size, dtype=dtype) for size in SIZES]
    singles = [buffer.clone() for buffer in buffers]
    tiles.momentum_average_(buffers, gradients, updates, 0.9, nesterov=nesterov)
    for single, gradient, buffer, update in zip(singles, gradients, buffers, updates, strict=True):
        expected = directions.momentum_average_(single, gradient, 0.9, nesterov=nesterov)
        assert torch.equal(buffer, single)
        assert torch.equal(update, expected.to(dtype))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("on_device", [False, True])
def test_adamw_on_lists_equals_single_tensors(momentum: float, on_device: bool) -> None:
    gradients = column(0)
    seconds = [tensor.square() for tensor in column(1)]
    firsts = column(2) if momentum else None
    kept = [tensor.clone() for tensor in seconds], [tensor.clone() for tensor in firsts or gradients]
    options = {"beta2": 0.99, "eps": 1e-8, "momentum": momentum}
    step = torch.tensor(7.0, dtype=torch.float64) if on_device else 7
    found, factor = tiles.adamw_direction(gradients, seconds, step, first_moments=firsts, **options)
    for i, gradient in enumerate(gradients):
        first = kept[1][i] if momentum else None
        expected, scale = directions.adamw_direction(gradient, kept[0][i], 7, first_moment=first, **options)
        ours, theirs = (found[i], expected) if not on_device else (found[i] * factor, expected * scale)
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6 if on_device else 0, atol=0)
        if not on_device:
            assert factor == scale
        assert torch.equal(seconds[i], kept[0][i])


@pytest.mark.parametrize("at", ["z", "y"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_device", [False, True])
def test_advance_on_lists_equals_single_tensors(
    at: DecayAt, weight_decay: float, dtype: torch.dtype, on_device: bool
) -> None:
    ys, zs, ds = column(0), column(1), [tensor.to(dtype) for tensor in column(2)]
    singles = [(y.clone(), z.clone()) for y, z in zip(ys, zs, strict=True)]
    numbers = {"lr": 0.125, "beta": 0.6, "c": 0.25, "beta_next": 0.75}
    given = {name: torch.tensor(v, dtype=torch.float64) if on_device else v for name, v in numbers.items()}
    tiles.advance_(ys, zs, ds, scale=0.5, weight_decay=weight_decay, at=at, **given)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if on_device else {"rtol": 0, "atol": 0}
    for (y, z), d, moved_y, moved_z in zip(singles, ds, ys, zs, strict=True):
        sequences.advance_(y, z, d, scale=0.5, weight_decay=weight_decay, at=at, **numbers)
        torch.testing.assert_close(moved_y, y, **tolerance)
        torch.testing.assert_close(moved_z, z, **tolerance)
