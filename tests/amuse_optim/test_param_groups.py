"""Which parameter gets which direction, by layer and by override; the table of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from amuse_optim import AMUSE, param_groups, report
from tests.amuse_optim.routing import Parts, Tied, directions


def option(model: nn.Module, parameter: str, key: str) -> Any:
    for group in param_groups(model):
        if parameter in [name for name, _ in group["params"]]:
            return group.get(key)
    raise KeyError(parameter)


def test_two_parameters_in_one_memory_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"'1.weight' and '0.weight' share memory"):
        param_groups(model)


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
        }
    )
    auxiliary = {"depthwise.weight", "multiplied.weight"}
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


@pytest.mark.requirement("C2")
def test_torch_transformer() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    for name, direction in directions(model).items():
        matrix = name.endswith("weight") and "norm" not in name
        assert direction == ("muon" if matrix else "adamw"), name


def test_experts_and_free_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(4, 8, 6))
            self.mixing = nn.Parameter(torch.randn(8, 8))
            self.pos_embed = nn.Parameter(torch.randn(10, 8))
            self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
            self.gate = nn.Parameter(torch.randn(8, 1))
            self.temperature = nn.Parameter(torch.tensor(1.0))

    assert directions(Model()) == {
        "experts": "muon",
        "mixing": "muon",
        "pos_embed": "adamw",
        "cls_token": "adamw",
        "gate": "adamw",
        "temperature": "adamw",
    }
    assert option(Model(), "experts", "stacked") is True


@pytest.mark.requirement("C2")
def test_overrides_apply_in_order() -> None:
    groups = param_groups(
        Tied(tie=False),
        overrides=[
            ("block.*", {"weight_decay": 0.5}),
            ("*.bias", {"weight_decay": 0.0}),
            ("lm_head.weight", "muon"),
        ],
    )
    found = {name: (g["direction"], g.get("weight_decay")) for g in groups for name, _ in g["params"]}
    assert found["block.weight"] == ("muon", 0.5)
    assert found["block.bias"] == ("adamw", 0.0)
    assert found["norm.weight"] == ("adamw", None)
    assert found["lm_head.weight"] == ("muon", None)


@pytest.mark.requirement("C6")
def test_lora_adapters_are_routed_by_override() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 8).requires_grad_(False)
            self.lora_A = nn.Linear(8, 2, bias=False)
            self.lora_B = nn.Linear(2, 8, bias=False)

    assert directions(Adapted()) == {"lora_A.weight": "muon", "lora_B.weight": "muon"}
    chosen = directions(Adapted(), overrides=[("*lora_B*", "adamw")])
    assert chosen == {"lora_A.weight": "muon", "lora_B.weight": "adamw"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": [("blok.*", "adamw")]}, "'blok.*' matches no trainable parameter"),
        ({"overrides": [("block.*", {"weight_decy": 0})]}, "did you mean 'weight_decay'"),
        ({"auxiliary": "lion"}, "auxiliary must be one of 'adamw', "),
    ],
)
@pytest.mark.requirement("C2")
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        param_groups(Tied(tie=True), **options)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no trainable parameters"):
        param_groups(nn.Linear(2, 2).requires_grad_(False))


def test_sgd_as_the_auxiliary_takes_the_spectral_scale() -> None:
    groups = param_groups(Tied(tie=True), auxiliary="sgd", weight_decay=0.1)
    assert {g["direction"]: g.get("scale") for g in groups} == {"sgd": None, "muon": "spectral"}
    assert {g["weight_decay"] for g in groups} == {0.1}


@pytest.mark.requirement("C2")
def test_every_trainable_parameter_once_and_all_of_them_usable() -> None:
    model = nn.Sequential(
        Tied(tie=True), nn.LSTM(8, 8), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    groups = param_groups(model)
    members: list[Tensor] = [p for g in groups for _, p in g["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    optimizer = AMUSE(groups, warmup_steps=2)
    for parameter in members:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_report_counts_and_names() -> None:
    model = Tied(tie=True)
    table = report(param_groups(model))
    assert table.splitlines()[-1] == "176 parameters: 64 muon, 112 adamw"
    assert report(AMUSE(param_groups(model), warmup_steps=2, weight_decay=0.1).param_groups).count("0.1") == 5
    plain = AMUSE(model.parameters(), direction="adamw", warmup_steps=2)
    assert "(0)" in report(plain.param_groups)


def test_embeddings_and_norms_by_their_class_names() -> None:
    class VocabularyEmbedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(9, 8))

    model = Parts(embed=VocabularyEmbedding(), norm=nn.LayerNorm((4, 8)), conv=nn.Conv1d(1, 1, 3))
    assert set(directions(model).values()) == {"adamw", "muon"}
    assert directions(model)["embed.weight"] == directions(model)["norm.weight"] == "adamw"


def test_overrides_name_real_directions_and_drop_what_only_matrices_have() -> None:
    with pytest.raises(ValueError, match=r"must be one of .*'sgd', got 'adam'"):
        param_groups(Tied(tie=True), overrides=[("*", "adam")])
    groups = param_groups(nn.MultiheadAttention(8, 2), overrides=[("in_proj_weight", "adamw")])
    assert all("split_rows" not in group for group in groups if group["direction"] == "adamw")
    spectral = param_groups(Tied(tie=True), auxiliary="sgd", overrides=[("block.*", {"scale": "match_rms"})])
    assert "spectral" not in {group.get("scale") for group in spectral}


def test_parametrized_layers_are_what_they_are_without() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(4, 8, 3)),
        parametrizations.spectral_norm(nn.Embedding(10, 4)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 3)),
    )
    chosen = {
        name: (group["direction"], group.get("stacked", False))
        for group in param_groups(model)
        for name, _ in group["params"]
    }
    assert parametrize.is_parametrized(model[0])
    assert chosen["0.parametrizations.weight.original0"] == ("adamw", False)  # one length an output channel
    assert chosen["0.parametrizations.weight.original1"] == ("muon", False)
    assert chosen["1.parametrizations.weight.original"] == ("adamw", False)
    assert chosen["2.parametrizations.weight.original"] == ("muon", False)
    assert chosen["3.parametrizations.weight.original"] == ("adamw", False)  # the head
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Conv2d(4, 8, 3))
    directions = {name: group["direction"] for group in param_groups(old) for name, _ in group["params"]}
    assert directions == {"bias": "adamw", "weight_g": "adamw", "weight_v": "muon"}
