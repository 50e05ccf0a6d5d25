import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from amuse_lab.bench.memory import PeakMemory
from amuse_lab.errors import ConfigError
from amuse_lab.tasks.lm import loss
from amuse_lab.tasks.lm.model import Llama, ModelConfig, RMSNorm, rope_table, rotate

SMALL = ModelConfig(n_embd=32, n_head=4, n_layer=2, context=24, mlp_multiple=16)


def windows(batch: int = 3) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(256, (batch, 25), generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1], drawn[:, 1:]


def built(**changes: object) -> Llama:
    torch.manual_seed(0)
    return Llama(replace(SMALL, **changes))


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few logits count as many: the loss of `windows` is made in four chunks."""
    monkeypatch.setattr(loss, "CHUNK_ENTRIES", 20 * 256)


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


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


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_loss_come_from_what_the_head_sees(tied: bool) -> None:
    model, (tokens, targets) = built(tied=tied), windows()
    logits = model.hidden(tokens) @ model.head_weight.T
    assert (model.head_weight is model.embedding.weight) == tied
    assert torch.equal(model(tokens), logits)
    assert torch.equal(
        model(tokens, targets), functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    )


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_change_neither_the_loss_nor_its_gradients(tied: bool) -> None:
    whole, (tokens, targets) = built(tied=tied), windows()
    plain = functional.cross_entropy(whole(tokens).flatten(0, 1), targets.flatten())
    model = built(tied=tied)
    value = model(tokens, targets)
    torch.testing.assert_close(value, plain)
    for ours, theirs in zip(gradients(value, model), gradients(plain, whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_checkpointing_changes_no_bit_of_the_gradients() -> None:
    tokens, targets = windows()
    plain, model = built(), built(checkpointing=True)
    for ours, theirs in zip(
        gradients(model(tokens, targets), model), gradients(plain(tokens, targets), plain), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_checkpointing_keeps_less() -> None:
    """What enters each block, and the insides of one block, instead of those of all six."""

    def peak(checkpointing: bool) -> int:
        model = built(n_layer=6, checkpointing=checkpointing)
        with PeakMemory(torch.device("cpu")) as measured, measured.window():
            model(*windows()).backward()
        return measured.bytes

    assert peak(checkpointing=True) < 0.5 * peak(checkpointing=False)


# Dynamo makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("backend", "checkpointing"), [("eager", False), ("aot_eager", True)])
def test_compiles_as_one_graph(backend: str, checkpointing: bool) -> None:
    tokens, targets = windows()
    plain, model = built(n_layer=1), built(n_layer=1, checkpointing=checkpointing)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    value = compiled(tokens, targets)
    torch.testing.assert_close(value, plain(tokens, targets))
    for ours, theirs in zip(gradients(value, model), gradients(plain(tokens, targets), plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_compiled_rotation_is_the_same_product() -> None:
    """Of whole numbers, where no order of operations rounds."""
    heads, table = torch.randint(-9, 9, (2, 5, 3, 8)).float(), torch.randint(-9, 9, (5, 4, 2)).float()
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    assert torch.equal(compiled(heads, table), rotate(heads, table))


def test_low_precision_leaves_positions_exact() -> None:
    model = built().bfloat16()
    assert torch.equal(model.rope.view(torch.float32), rope_table(24, 8, 10_000.0))
    assert model(windows()[0]).dtype == torch.bfloat16


def sharded(model: Llama) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


@pytest.mark.usefixtures("chunked", "process_group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, sharded])
@pytest.mark.parametrize("tied", [True, False])
def test_wrapped_models_get_the_same_gradients(wrap: Callable[[Llama], nn.Module], tied: bool) -> None:
    tokens, targets = windows()
    plain, model = built(tied=tied), wrap(built(tied=tied, checkpointing=True))
    ours = [getattr(g, "full_tensor", lambda g=g: g)() for g in gradients(model(tokens, targets), model)]
    for wrapped, theirs in zip(ours, gradients(plain(tokens, targets), plain), strict=True):
        torch.testing.assert_close(wrapped, theirs)


@pytest.mark.usefixtures("process_group")
def test_shards_in_low_precision_leave_positions_exact() -> None:
    """FSDP converts what enters a block, the table of rotations among it."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model, tokens = built(n_layer=1), windows()[0]
    expected = built(n_layer=1).bfloat16()(tokens)
    fully_shard(model.blocks[0], mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    assert torch.equal(model(tokens), expected)
