"""Which matrices a parameter is made of."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, param_groups, report
from amuse_optim.matrices import matrix_layout, update_scale
from tests.amuse_optim.training import take_steps

SHAPES = [
    ((6, 4), {}, ((1, 6, 4),)),
    ((8, 3, 3, 3), {}, ((1, 8, 27),)),
    ((8, 3, 5), {}, ((1, 8, 15),)),
    ((8, 3, 2, 2, 2), {}, ((1, 8, 24),)),
    ((8, 2, 3, 3), {"conv_groups": 4}, ((4, 2, 18),)),
    ((5, 6, 4), {"stacked": True}, ((5, 6, 4),)),
    ((2, 5, 6, 4), {"stacked": True}, ((10, 6, 4),)),
    ((12, 4), {"split_rows": (4, 4, 4)}, ((1, 4, 4),) * 3),
    ((12, 4), {"split_rows": (8, 2, 2)}, ((1, 8, 4), (1, 2, 4), (1, 2, 4))),
    ((12, 4), {"num_heads": 3}, ((3, 4, 4),)),
    ((16, 3, 3, 3), {"num_heads": 2, "conv_groups": 2}, ((4, 4, 27),)),
    ((12, 4), {"split_rows": (8, 4), "num_heads": 2}, ((2, 4, 4), (2, 2, 4))),
]
# Stored as (in, out): the same options, and the matrices as they are, not as they are stored.
TRANSPOSED = [
    ((4, 6), {}, ((1, 6, 4),)),
    ((3, 8, 2, 2), {}, ((1, 32, 3),)),
    ((8, 2, 3, 3), {"conv_groups": 4}, ((4, 18, 2),)),
    ((2, 5, 4, 6), {"stacked": True}, ((10, 6, 4),)),
    ((4, 12), {"split_rows": (8, 4)}, ((1, 8, 4), (1, 4, 4))),
    ((4, 12), {"num_heads": 3}, ((3, 4, 4),)),
    ((4, 12), {"split_rows": (8, 4), "num_heads": 2}, ((2, 4, 4), (2, 2, 4))),
]
CASES = [
    *SHAPES,
    *((shape, {**options, "transposed": True}, blocks) for shape, options, blocks in TRANSPOSED),
]


def cut(tensor: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """The matrices of a tensor, written with chunks, splits and transposes."""
    transposed = options.get("transposed", False)
    if options.get("stacked"):
        stored = list(tensor.reshape(-1, *tensor.shape[-2:]))
        return [matrix.T for matrix in stored] if transposed else stored
    groups = tensor.reshape(len(tensor), -1).chunk(options.get("conv_groups", 1))
    wholes = [matrix.T for matrix in groups] if transposed else list(groups)
    split = options.get("split_rows")
    parts = [part for whole in wholes for part in (whole.split(split) if split else [whole])]
    return [head for part in parts for head in part.chunk(options.get("num_heads", 1))]


def at(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in box)


@pytest.mark.parametrize(("shape", "options", "blocks"), CASES)
def test_every_matrix_is_a_box(shape: tuple[int, ...], options: dict[str, Any], blocks: Any) -> None:
    tensor = torch.arange(math.prod(shape)).view(shape)
    layout = matrix_layout(shape, **options)
    singles = layout.singles()
    rows = torch.arange(math.prod(layout.row_shape)).view(layout.row_shape)
    assert [(single.rows, single.cols) for single in singles] == [
        (rows, cols) for number, rows, cols in blocks for _ in range(number)
    ]
    for single, expected in zip(singles, cut(tensor, options), strict=True):
        found = tensor[at(single.box)]
        transposed = options.get("transposed", False)
        matrix = found.reshape(single.cols, single.rows).T if transposed else found.reshape(expected.shape)
        assert torch.equal(matrix, expected)
    assert torch.equal(torch.cat([rows[at(single.row_box)].flatten() for single in singles]), rows.flatten())


def test_a_box_does_not_cut_kernels() -> None:
    layout = matrix_layout((3, 4, 3), transposed=True, split_rows=(6, 6))
    assert [single.box for single in layout.singles()] == [((0, 3), (i, i + 2), (0, 3)) for i in (0, 2)]
    with pytest.raises(ValueError, match=r"must not cut through the kernels \(3,\)"):
        matrix_layout((3, 4, 3), transposed=True, split_rows=(5, 7)).singles()


@pytest.mark.parametrize("bound", [1, 30, 10**6])
@pytest.mark.parametrize(("shape", "options", "blocks"), CASES)
@pytest.mark.requirement("C3", "C4")
def test_blocks_and_where_they_lie(shape: tuple[int, ...], options: dict, blocks: tuple, bound: int) -> None:
    layout = matrix_layout(shape, **options)
    assert layout.blocks == blocks
    buffer = torch.arange(math.prod(shape))
    found: list[Tensor] = []
    rows_before = 0
    for (rows, cols), place in layout.places(bound):
        entries = place.of(buffer)
        assert entries.numel() == place.entries
        assert place.row == rows_before
        rows_before += place.entries // cols
        if options.get("transposed"):
            found += [matrix.T for matrix in entries.reshape(-1, cols, rows)]
        else:
            found += entries.reshape(-1, rows, cols)
    expected = [matrix for matrix in cut(buffer.view(shape), options) if matrix.numel()]
    assert len(found) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert math.prod(layout.row_shape) == rows_before


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, "at least two dimensions"),
        ((6, 4), {"split_rows": (4, 4)}, "split_rows must be positive and sum to 6"),
        ((6, 4), {"split_rows": (6, 0)}, "split_rows must be positive"),
        ((6, 4), {"split_rows": (3, 3), "transposed": True}, "split_rows must be positive and sum to 4"),
        ((6, 4), {"num_heads": 4}, "num_heads must divide the rows"),
        ((6, 4), {"num_heads": 3, "transposed": True}, r"num_heads must divide the rows \(4,\)"),
        ((6, 4, 3, 3), {"conv_groups": 4}, "conv_groups must divide the rows"),
        ((6, 4, 3), {"conv_groups": 4, "transposed": True}, "conv_groups must divide the inputs 6"),
        ((6, 4, 3), {"conv_groups": 2, "num_heads": 2, "transposed": True}, "transposed cannot be combined"),
        ((6, 4, 3), {"stacked": True, "num_heads": 2}, "stacked cannot be combined"),
    ],
)
def test_impossible_layouts_name_the_option(shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matrix_layout(shape, **options)


def trained(weight: Tensor, gradients: list[Tensor], **options: Any) -> Tensor:
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    optimizer_class = options.pop("optimizer_class", AMUSE)
    optimizer = optimizer_class([{"params": [parameter], "lr": 0.1, **options}], warmup_steps=3)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("scale", ["match_rms", "spectral"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_heads": 3}, {"split_rows": (12, 6, 6)}, {"split_rows": (12, 6, 6), "num_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("direction", ["muon", "normuon"])
@pytest.mark.requirement("C8")
def test_stored_as_its_transpose_a_matrix_takes_the_same_steps(
    direction: str, options: dict[str, Any], scale: str
) -> None:
    draw = torch.Generator().manual_seed(5)
    weight, *gradients = (torch.randn(24, 10, generator=draw, dtype=torch.float64) for _ in range(5))
    options = {"direction": direction, "scale": scale, "weight_decay": 0.1, **options}
    expected = trained(weight, gradients, **options)
    found = trained(weight.T.contiguous(), [g.T for g in gradients], transposed=True, **options)
    torch.testing.assert_close(found.T, expected, rtol=0, atol=1e-12)
    as_a_view = trained(weight.T, [g.T for g in gradients], transposed=True, **options)
    torch.testing.assert_close(as_a_view.T, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", ["muon", "normuon"])
@pytest.mark.requirement("C8")
def test_stacks_of_transposes_take_the_same_steps(direction: str) -> None:
    weight, *gradients = torch.randn(5, 3, 8, 5, dtype=torch.float64)
    options = {"direction": direction, "scale": "spectral", "stacked": True}
    expected = trained(weight, gradients, **options)
    found = trained(weight.mT.contiguous(), [g.mT for g in gradients], transposed=True, **options)
    torch.testing.assert_close(found.mT, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "options", "blocks"), CASES)
@pytest.mark.requirement("C8")
def test_the_specification_cuts_as_the_optimizer_does(
    shape: tuple[int, ...], options: dict[str, Any], blocks: tuple
) -> None:
    del blocks
    draw = torch.Generator().manual_seed(7)
    weight, *gradients = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(4))
    options = {"direction": "muon", "scale": "spectral", **options}
    expected = trained(weight, gradients, optimizer_class=AMUSEReference, **options)
    torch.testing.assert_close(trained(weight, gradients, **options), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("precision", ["full", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.requirement("C8")
def test_columns_in_every_precision(dtype: torch.dtype, precision: str) -> None:
    draw = torch.Generator().manual_seed(9)
    weight, *gradients = (torch.randn(300, 420, generator=draw) for _ in range(3))  # more than a chunk holds
    options = {"direction": "muon", "split_rows": (100, 100, 100), "state_precision": precision}
    expected = trained(weight, gradients, **options)
    stored = [tensor.T.to(dtype).contiguous() for tensor in (weight, *gradients)]
    found = trained(stored[0], stored[1:], transposed=True, **options)
    exact = dtype == torch.float32 and precision == "full"
    torch.testing.assert_close(found.T.float(), expected, rtol=0, atol=1e-4 if exact else 0.05)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.requirement("C3")
def test_memory_formats_do_not_matter(memory_format: torch.memory_format) -> None:
    weight, *gradients = torch.randn(4, 6, 4, 3, 3, dtype=torch.float64)
    for options in ({}, {"transposed": True}, {"transposed": True, "split_rows": (9, 27)}):
        expected = trained(weight, gradients, direction="normuon", **options)
        found = trained(weight.to(memory_format=memory_format), gradients, direction="normuon", **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_scales_of_the_published_forms() -> None:
    assert update_scale(64, 256, "match_rms") == pytest.approx(0.2 * 16)
    assert update_scale(256, 64, "match_rms") == pytest.approx(0.2 * 16)
    assert update_scale(256, 64, "spectral") == pytest.approx(2.0)
    assert update_scale(64, 256, "spectral") == 1.0


def test_empty_matrices_have_every_scale() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 5)
    groups = param_groups(nn.Sequential(empty, nn.Linear(5, 2)), auxiliary="sgd")
    assert "5x0" in report(groups)
    take_steps(AMUSE(groups, lr=0.1, warmup_steps=2), range(2))
