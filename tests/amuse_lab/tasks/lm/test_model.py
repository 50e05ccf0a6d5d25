import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from amuse_lab.errors import ConfigError
from amuse_lab.tasks.lm.model import Llama, ModelConfig, RMSNorm, rope_table, rotate

SMALL = ModelConfig(n_embd=32, n_head=4, n_layer=2, context=24, mlp_multiple=16)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_logits_have_a_row_per_token() -> None:
    model = Llama(SMALL)
    assert model(torch.zeros(3, 24, dtype=torch.long)).shape == (3, 24, 256)
    assert model(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 256)


def test_a_later_byte_does_not_change_earlier_logits() -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    tokens = torch.randint(256, (1, 24))
    changed = tokens.clone()
    changed[0, 15] += 1
    changed %= 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 15:], after[:, 15:])


def test_attention_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 8)
    table = rope_table(50, 8, 10_000.0)
    queries = rotate(query.expand(1, 50, 1, 8), table)[0, :, 0]
    keys = rotate(key.expand(1, 50, 1, 8), table)[0, :, 0]
    scores = queries @ keys.T
    for distance in (0, 3, 20):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0, 0], query @ key)


def test_rotation_turns_neighbouring_components_by_the_position() -> None:
    heads = torch.zeros(1, 3, 1, 4)
    heads[..., 0] = 1.0  # pair 0, of frequency 1
    heads[..., 3] = 1.0  # pair 1, of frequency 10,000^(-1/2)
    turned = rotate(heads, rope_table(3, 4, 10_000.0))[0, 2, 0]
    expected = torch.tensor([math.cos(2), math.sin(2), -math.sin(0.02), math.cos(0.02)])
    torch.testing.assert_close(turned, expected)


def test_rotation_is_computed_in_float32_and_returned_in_kind() -> None:
    heads = torch.randn(1, 5, 2, 8, dtype=torch.bfloat16)
    table = rope_table(5, 8, 10_000.0)
    assert torch.equal(rotate(heads, table), rotate(heads.float(), table).bfloat16())


def test_norm_matches_its_formula() -> None:
    norm = RMSNorm(8)
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 8)
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_follows_the_formula(tied: bool) -> None:
    config = replace(SMALL, tied=tied)
    n, width, layers = config.n_embd, config.mlp_width, config.n_layer
    block = 3 * n * n + n * n + 3 * n * width + 2 * n
    assert count(Llama(config)) == layers * block + n + (1 if tied else 2) * 256 * n


@pytest.mark.parametrize(
    ("n_embd", "n_head", "n_layer", "mlp_width", "millions"),
    [(768, 12, 12, 2048, 123.59), (2048, 16, 12, 5632, 719.64), (2048, 32, 24, 5632, 1336.25)],
)
def test_published_sizes(n_embd: int, n_head: int, n_layer: int, mlp_width: int, millions: float) -> None:
    config = ModelConfig(n_embd, n_head, n_layer, context=512, vocabulary=50_304)
    assert config.mlp_width == mlp_width
    with torch.device("meta"):
        model = Llama(config)
    assert round(count(model) / 1e6, 2) == millions


def test_initial_weights_have_the_published_spread() -> None:
    torch.manual_seed(0)
    model = Llama(ModelConfig(n_embd=128, n_head=4, n_layer=8, context=8, tied=False))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            std = 0.02 / math.sqrt(16) if "projection" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name


def test_state_dict_holds_each_parameter_once_and_no_tables() -> None:
    model = Llama(SMALL)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd must be a multiple of 2 \\* n_head = 6, got 32"),
        ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
        ({"rope_base": 1.0}, "rope_base must be"),
    ],
)
def test_impossible_shapes_are_rejected(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)
