"""Which parameters are hidden matrices, and how they are stored."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from amuse_optim import AMUSE, param_groups, report
from tests.amuse_optim.routing import Parts, directions, option


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


@pytest.mark.requirement("C3")
def test_convolutions_of_every_kind() -> None:
    model = nn.ModuleDict(
        {
            "one": nn.Conv1d(4, 8, 5, bias=False),
            "two": nn.Conv2d(4, 8, 3, bias=False),
            "three": nn.Conv3d(4, 8, 3, bias=False),
            "grouped": nn.Conv2d(8, 16, 3, groups=4, bias=False),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8, bias=False),
            "multiplied": nn.Conv2d(8, 16, 3, groups=8, bias=False),
            "pointwise": nn.Conv2d(8, 16, 1, bias=False),
            "grey": nn.Conv2d(1, 16, 3, bias=False),
            "single": nn.Conv1d(4, 1, 3, bias=False),
        }
    )
    auxiliary = {"depthwise.weight", "multiplied.weight", "single.weight"}
    assert directions(model) == {
        f"{name}.weight": "adamw" if f"{name}.weight" in auxiliary else "muon" for name in model
    }
    assert option(model, "grouped.weight", "conv_groups") == 4
    assert "4 of 4x18" in report(param_groups(model))


@pytest.mark.requirement("C4")
def test_recurrent_networks_split_their_gates() -> None:
    model = nn.LSTM(5, 8, num_layers=2)
    expected = {
        name: "muon" if name.startswith("weight") else "adamw" for name, _ in model.named_parameters()
    }
    assert directions(model) == expected
    assert option(model, "weight_ih_l0", "split_rows") == (8, 8, 8, 8)
    assert option(nn.GRU(5, 8), "weight_hh_l0", "split_rows") == (8, 8, 8)
    assert option(nn.GRUCell(5, 8), "weight_ih", "split_rows") == (8, 8, 8)
    assert option(nn.RNN(5, 8), "weight_hh_l0", "split_rows") is None


@pytest.mark.requirement("C4")
def test_attention_splits_query_key_and_value() -> None:
    model = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    assert directions(model) == {
        "in_proj_weight": "muon",
        "in_proj_bias": "adamw",
        "out_proj.weight": "muon",
        "out_proj.bias": "adamw",
        "bias_k": "adamw",
        "bias_v": "adamw",
    }
    assert option(model, "in_proj_weight", "split_rows") == (8, 8, 8)


@pytest.mark.requirement("C11")
@pytest.mark.parametrize(
    "name",
    [
        *(
            "down_proj_bias",
            "gate_bias",
            "bias_u",
            "r_w_bias",
            "attention_biases",
        ),  # one for each expert, head
        *("relative_position_bias_table", "rel_pos_h", "pos_embed", "height_rel_pos"),
        *("A_log", "D", "dt_bias", "A", "time_decay"),  # state-space models
        *("latents", "latents_1d", "latent_query", "query", "queries", "probe", "prompts", "cls_token"),
        *("scale", "codebook", "prototypes", "token_embedding"),
    ],
)
def test_tables_of_vectors_are_no_matrices(name: str) -> None:
    assert directions(Parts(**{name: free(6, 8)}))[name] == "adamw"


@pytest.mark.requirement("C11")
@pytest.mark.parametrize(
    "name",
    ["mixing", "w1", "kernel", "visual_projection", "prompts_projection", "token_weight", "q", "A_proj"],
)
def test_free_parameters_that_are_matrices(name: str) -> None:
    assert directions(Parts(**{name: free(6, 8)}))[name] == "muon"


@pytest.mark.requirement("C11")
def test_vectors_in_more_dimensions_are_no_matrices() -> None:
    model = Parts(
        token=free(1, 1, 8), gate=free(8, 1), row=free(1, 8), mix=free(1, 4, 8), stack=free(4, 1, 8)
    )
    assert set(directions(model).values()) == {"adamw"}


@pytest.mark.requirement("C11")
def test_parameters_of_tables_are_known_by_the_class_of_their_owner() -> None:
    class VocabularyEmbedding(Parts): ...

    class LearnedPositionalEncoding(Parts): ...

    class MarginLoss(Parts): ...

    class CondConv2d(Parts): ...

    model = Parts(
        a=VocabularyEmbedding(weight=free(9, 8)),
        b=LearnedPositionalEncoding(weight=free(9, 8)),
        c=MarginLoss(weight=free(8, 5)),
        mixed=CondConv2d(weight=free(4, 72)),  # every row a whole kernel
        d=nn.LayerNorm((4, 8)),
        e=nn.Embedding(9, 8),
        f=nn.EmbeddingBag(9, 8),
        hidden=Parts(weight=free(8, 8)),
    )
    assert {n for n, d in directions(model).items() if d == "muon"} == {"hidden.weight"}


@pytest.mark.requirement("C11")
def test_adapters_of_embeddings_are_tables_and_those_of_layers_are_matrices() -> None:
    """As peft keeps them: parameters by adapter, in dictionaries."""
    adapter = {"default": free(4, 9)}
    model = Parts(
        lora_embedding_A=nn.ParameterDict(adapter),
        tokens_delta=nn.ParameterDict({"default": free(2, 8)}),
        position_weights=nn.ParameterList([free(4, 8)]),
        lora_A=nn.ParameterDict({"default": free(4, 8)}),
    )
    assert directions(model) == {
        "lora_embedding_A.default": "adamw",
        "tokens_delta.default": "adamw",
        "position_weights.0": "adamw",
        "lora_A.default": "muon",
    }


@pytest.mark.requirement("C11")
def test_stacks_of_experts_and_kernels_of_heads() -> None:
    class Experts(Parts): ...

    model = Parts(w=free(4, 8, 6), kernel=free(32, 4, 8), experts=Experts(gate_up_proj=free(64, 8, 6)))
    model.one = Parts(experts=free(1, 8, 6))
    assert set(directions(model).values()) == {"muon"}
    assert option(model, "w", "stacked") is True
    assert option(model, "kernel", "stacked") is None  # one matrix, (in, heads * width)
    assert option(model, "experts.gate_up_proj", "stacked") is True
    assert option(model, "w", "transposed") is None
    model.experts.is_transposed = True  # as transformers marks experts that are stored as (in, out)
    assert option(model, "experts.gate_up_proj", "transposed") is True


def test_a_parametrized_weight_is_what_it_was() -> None:
    model = Parts(conv=parametrizations.weight_norm(nn.Conv1d(8, 16, 3)), head=nn.Linear(16, 2))
    found = directions(model)
    assert found["conv.parametrizations.weight.original1"] == "muon"
    assert found["conv.parametrizations.weight.original0"] == "adamw"


@pytest.mark.requirement("C8")
def test_weights_stored_as_in_out_are_recognized_and_split_by_columns() -> None:
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=40, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    groups = param_groups(
        model, auxiliary="sgd", overrides=[("*.c_attn.weight", {"split_rows": (16, 16, 16)})]
    )
    lines = {line.split()[0]: line.split() for line in report(groups).splitlines()}
    attention = lines["transformer.h.0.attn.c_attn.weight"]
    assert attention[1:8] == ["16x48", "muon", "16x16", "+", "16x16", "+", "16x16"]
    assert lines["transformer.h.0.mlp.c_fc.weight"][1:] == ["16x64", "muon", "64x16", "2", "-"]
    assert lines["transformer.h.0.mlp.c_proj.weight"][1:] == ["64x16", "muon", "16x64", "1", "-"]
    optimizer = AMUSE(groups, warmup_steps=2)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert option(nn.ConvTranspose2d(4, 8, 3), "weight", "transposed") is True
