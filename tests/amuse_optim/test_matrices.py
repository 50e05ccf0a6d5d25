"""Which matrices a parameter is made of."""

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, param_groups, report
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


@pytest.mark.parametrize(("shape", "options", "blocks"), SHAPES)
@pytest.mark.requirement("C3", "C4")
def test_blocks_and_their_inverse(shape: tuple[int, ...], options: dict, blocks: tuple) -> None:
    layout = matrix_layout(shape, **options)
    assert layout.blocks == blocks
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = layout.split(tensor)
    assert tuple(part.shape for part in parts) == blocks
    assert torch.equal(torch.cat([part.flatten() for part in parts]), tensor.flatten())
    assert torch.equal(layout.join(parts), tensor)


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((8, 3, 3, 3), torch.channels_last), ((8, 3, 2, 2, 2), torch.channels_last_3d)],
)
@pytest.mark.requirement("C3")
def test_memory_format_does_not_matter(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    layout = matrix_layout(shape)
    tensor = torch.randn(shape)
    (plain,), (reordered,) = layout.split(tensor), layout.split(tensor.to(memory_format=memory_format))
    assert torch.equal(plain, reordered)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, "at least two dimensions"),
        ((6, 4), {"split_rows": (4, 4)}, "split_rows must be positive and sum to 6"),
        ((6, 4), {"split_rows": (6, 0)}, "split_rows must be positive"),
        ((6, 4), {"num_heads": 4}, "num_heads must divide the rows"),
        ((6, 4, 3, 3), {"conv_groups": 4}, "conv_groups must divide the rows"),
        ((6, 4, 3), {"stacked": True, "num_heads": 2}, "stacked cannot be combined"),
    ],
)
def test_impossible_layouts_name_the_option(shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matrix_layout(shape, **options)


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
