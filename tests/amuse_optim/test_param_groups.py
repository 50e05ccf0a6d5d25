"""Which parameter gets which direction, by layer and by override; the table of them."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from amuse_optim import AMUSE, param_groups, report
from tests.amuse_optim.routing import Parts, Tied, directions


def test_two_parameters_in_one_memory_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ValueError, match=r"'1.weight' and '0.weight' share memory"):
        param_groups(model)


@pytest.mark.requirement("C2")
def test_torch_transformer() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    for name, direction in directions(model).items():
        matrix = name.endswith("weight") and "norm" not in name
        assert direction == ("muon" if matrix else "adamw"), name


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
        ({"decaying": "matrix"}, "decaying must be one of 'all', 'matrices', got 'matrix'"),
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
@pytest.mark.parametrize("tie", [False, True])
def test_embeddings_norms_and_biases_need_not_decay(tie: bool) -> None:
    """As AdamW's groups are made by hand: every weight of a layer, but for a head that is the embedding."""
    model = nn.Sequential(Tied(tie=tie), nn.LSTM(8, 8), nn.Conv1d(8, 8, 3, groups=8), nn.BatchNorm1d(8))
    still = {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() < 2 or "embed" in name or (tie and "lm_head" in name)
    }
    groups = param_groups(model, decaying="matrices", weight_decay=0.1)
    found = {name: g["weight_decay"] for g in groups for name, _ in g["params"]}
    assert found == {name: 0.0 if name in still else 0.1 for name, _ in model.named_parameters()}
    overrides = [("*bias*", {"weight_decay": 0.2}), ("*embed*", "adamw")]
    chosen = param_groups(model, decaying="matrices", overrides=overrides)
    assert {g.get("weight_decay") for g in chosen for name, _ in g["params"] if "bias" in name} == {0.2}
    assert {g.get("weight_decay") for g in chosen for name, _ in g["params"] if "embed" in name} == {0.0}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_scales_of_weight_norm_do_not_decay_and_what_an_override_makes_a_matrix_does() -> None:
    model = Parts(
        old=torch.nn.utils.weight_norm(nn.Linear(4, 4)),
        new=parametrizations.weight_norm(nn.Linear(4, 4)),
        queries=nn.Parameter(torch.randn(4, 4)),
        lm_head=nn.Linear(4, 9),
    )
    for overrides in ([], [("queries", "muon")]):
        groups = param_groups(model, decaying="matrices", weight_decay=0.1, overrides=overrides)
        found = {name: g["weight_decay"] for g in groups for name, _ in g["params"]}
        assert found["old.weight_g"] == found["new.parametrizations.weight.original0"] == 0.0
        assert found["old.weight_v"] == found["new.parametrizations.weight.original1"] == 0.1
        assert found["queries"] == (0.1 if overrides else 0.0)


def test_a_head_that_is_no_layer_of_torch_decays() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(9, 4))
            self.bias = nn.Parameter(torch.zeros(9))

    groups = param_groups(Parts(body=nn.Linear(4, 4), lm_head=Head()), decaying="matrices", weight_decay=0.1)
    found = {name: g["weight_decay"] for g in groups for name, _ in g["params"]}
    assert found == {"body.weight": 0.1, "body.bias": 0.0, "lm_head.weight": 0.1, "lm_head.bias": 0.0}


def test_report_says_what_is_fused_and_moves_as_one_matrix() -> None:
    model = Parts(attention=Parts(qkv=nn.Linear(4, 12)), lm_head=nn.Linear(4, 9))
    assert "'attention.qkv.weight' seems to hold queries, keys and values" in report(param_groups(model))
    apart = param_groups(model, overrides=[("*qkv.weight", {"split_rows": (4, 4, 4)})])
    assert "seems" not in report(apart)
    assert "seems" not in report(param_groups(model, overrides=[("*qkv.weight", "adamw")]))
    assert "seems" not in report(param_groups(model, overrides=[("*qkv.weight", {"num_heads": 3})]))
    apart = Parts(qkv=Parts(q=nn.Linear(4, 4)), query_key_value=nn.Linear(4, 12), lm_head=nn.Linear(4, 9))
    assert "seems" not in report(param_groups(apart))  # the rows of the second are often by head


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


def test_an_auxiliary_direction_drops_nothing_that_earlier_overrides_said() -> None:
    groups = param_groups(
        Tied(tie=False),
        overrides=[
            ("block.weight", {"lr": 0.5, "weight_decay": 0.3, "split_rows": (4, 4)}),
            ("*.bias", {"lr": 0.25}),
            ("block.*", "adamw"),
        ],
    )
    found = {name: group for group in groups for name, _ in group["params"]}
    weight, bias = found["block.weight"], found["block.bias"]
    assert (weight["direction"], weight["lr"], weight["weight_decay"]) == ("adamw", 0.5, 0.3)
    assert "split_rows" not in weight
    assert (bias["direction"], bias["lr"]) == ("adamw", 0.25)


def test_the_report_has_the_scale_of_each_block() -> None:
    weight = nn.Parameter(torch.zeros(2560, 512))
    table = report([{"params": [("qkv", weight)], "direction": "muon", "split_rows": (2304, 128, 128)}])
    scales = [f"{0.2 * max(rows, 512) ** 0.5:.3g}" for rows in (2304, 128)]
    assert re.search(rf"{scales[0]} \+ {scales[1]}\b", table)


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
