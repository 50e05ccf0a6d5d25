"""The recipes of the published runs against the published table, written down a second time."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from amuse_lab.arguments import parse
from amuse_lab.cli import main
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.protocols import NeedsCurvature
from amuse_lab.recipes.pretraining import RECIPES

COSINE = {"warmup_steps": 2000, "weight_decay": 0.1, "schedule": "cosine"}
NESTEROV = {"momentum": 0.95}

PUBLISHED = {
    "124m-amuse": ("amuse", 1e-2, (0.6, 0.999), {"warmup_steps": 6000, "weight_decay": 0.05, "rho": 0.8}),
    "124m-adamw": ("adamw", 1e-3, (0.8, 0.999), COSINE),
    "124m-adamw-wsd": ("adamw", 5e-4, (0.8, 0.999), COSINE | {"schedule": "wsd"}),
    "124m-ademamix": (
        "ademamix",
        1e-3,
        (0.9, 0.999),
        COSINE | {"beta3": 0.999, "alpha": 8, "slow_warmup_steps": 16_000},
    ),
    "124m-adopt": ("adopt", 1e-3, (0.9, 0.999), COSINE | {"eps": 1e-6}),
    "124m-d-muon": ("d-muon", 2e-3, (0.8, 0.999), COSINE | NESTEROV),
    "124m-lion": ("lion", 1e-3, (0.9, 0.99), COSINE),
    "124m-mars": (
        "mars",
        3e-3,
        (0.95, 0.99),
        COSINE | {"lr_rest": 1e-3, "beta1_rest": 0.8, "beta2_rest": 0.999, "gamma": 0.025},
    ),
    "124m-muon": ("muon", 1e-2, (0.8, 0.999), COSINE | NESTEROV | {"lr_rest": 1e-3}),
    "124m-prodigy": ("prodigy", 1.0, (0.9, 0.999), COSINE),
    "124m-sf-adamw": ("sf-adamw", 2e-3, (0.9, 0.9999), {"warmup_steps": 2000, "weight_decay": 0.1}),
    "124m-signum": ("signum", 1e-3, None, COSINE | {"momentum": 0.95}),
    "124m-soap": (
        "soap",
        1e-3,
        (0.9, 0.999),
        COSINE | {"precondition_every": 10, "max_precondition_dim": 10_000},
    ),
    "124m-sophia": (
        "sophia",
        1e-3,
        (0.9, 0.999),
        # tokens: the released loop multiplies 480 sequences by their length of 512
        COSINE | {"rho": 0.04, "curvature_batch": 245_760, "curvature_every": 10},
    ),
    "720m-amuse": ("amuse", 1e-2, (0.4, 0.999), {"warmup_steps": 2000, "weight_decay": 0.1, "rho": 0.8}),
    "720m-adamw": ("adamw", 1e-3, (0.9, 0.999), COSINE),
    "720m-d-muon": ("d-muon", 1e-3, (0.9, 0.99), COSINE | NESTEROV),
    "720m-sf-adamw": ("sf-adamw", 1e-3, (0.9, 0.9999), {"warmup_steps": 8000, "weight_decay": 0.1}),
    "1.3b-amuse": ("amuse", 1e-2, (0.4, 0.999), {"warmup_steps": 2000, "weight_decay": 0.1, "rho": 0.8}),
    "1.3b-adamw": ("adamw", 1e-3, (0.9, 0.999), COSINE),
    "1.3b-d-muon": ("d-muon", 2e-3, (0.9, 0.99), COSINE | NESTEROV),
    "1.3b-sf-adamw": ("sf-adamw", 2e-3, (0.9, 0.9999), {"warmup_steps": 8000, "weight_decay": 0.1}),
}
"""Optimizer, learning rate, both betas, and what else is published of it."""

SIZES = {
    "124m": (123.59, 131_072, 16_000, 0.5, 115),
    "720m": (719.64, 1_015_808, 16_000, 0.1, 200),
    "1.3b": (1336.25, 1_048_576, 24_800, 0.1, 200),
}
"""Million parameters, tokens per step, steps, clip, steps between evaluations."""

TINY = [
    *("--task.model.n-embd", "16", "--task.model.n-head", "2", "--task.model.n-layer", "1"),
    *("--task.model.mlp-multiple", "8", "--task.model.context", "8", "--task.model.vocabulary", "256"),
    *("--device", "cpu", "--precision", "fp32"),
]


@pytest.mark.parametrize("run", PUBLISHED)
def test_without_its_text_a_published_run_is_refused_with_the_command_that_prepares_it(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it look for a GPU before: nobody rents one to find out that the data is not there."""
    monkeypatch.chdir(tmp_path)
    _, tokens, steps, *_ = SIZES[run.partition("-")[0]]
    assert main(["train", f"llama-{run}"]) == 2
    assert capsys.readouterr().err == (
        f"amuse-lab: {tmp_path}/data/fineweb holds no prepared text: amuse-lab prepare fineweb --tokens "
        f"{tokens * steps + 1}, or name other data with --task.data, another place with --data-root\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_other_text_is_trained_on_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RECIPES["llama-124m-amuse"]()
    replace(config.task, data="shakespeare").check(config.steps)
    replace(config.task, data="shakespeare-gpt2").check(config.steps)


def test_every_published_run_has_a_recipe_and_a_command() -> None:
    names = {f"llama-{run}" for run in PUBLISHED}
    assert set(RECIPES) == names
    page = (Path(__file__).parents[3] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert set(re.findall(r"amuse-lab train (llama-[^ `]+)` \|", page)) == names


@pytest.mark.parametrize("run", PUBLISHED)
def test_optimizers_have_the_published_settings(run: str) -> None:
    name, lr, betas, others = PUBLISHED[run]
    optimizer = RECIPES[f"llama-{run}"]().optimizer
    settings = asdict(optimizer)
    assert (optimizer.name, settings["lr"]) == (name, lr)
    assert betas is None or (settings["beta1"], settings["beta2"]) == betas
    assert {setting: settings[setting] for setting in others} == others
    assert settings["ema"] is None
    if name == "amuse":
        assert (settings["momentum"], settings["t0_steps"], settings["r"]) == (0.95, None, 0.0)
        assert (settings["auxiliary_momentum"], settings["lr_rest"]) == (0.0, None)


@pytest.mark.parametrize("run", PUBLISHED)
def test_runs_have_the_published_length_and_size(run: str) -> None:
    millions, tokens, steps, clip, eval_every = SIZES[run.partition("-")[0]]
    config = RECIPES[f"llama-{run}"]()
    assert config.task.batch * config.task.model.context == tokens
    assert config.task.model.context == 512
    assert (config.steps, config.clip, config.eval_every, config.seed) == (steps, clip, eval_every, 0)
    assert config.precision == "amp-bf16"
    assert config.task.eval_windows == 4096
    assert config.task.batch % config.micro_batch == 0
    with torch.device("meta"):
        model = config.task.build_model()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("run", PUBLISHED)
def test_at_a_reduced_width_a_recipe_takes_a_step(run: str) -> None:
    config = parse(RunConfig, TINY, default=RECIPES[f"llama-{run}"](), prog="", description="")
    torch.manual_seed(0)
    model = config.task.build_model()
    optimizer = config.optimizer.build(model, steps=config.steps)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tokens = torch.randint(256, (2, 9))
    if isinstance(optimizer, NeedsCurvature) and optimizer.wants_curvature:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.observe_curvature()
        optimizer.zero_grad()
    for _ in range(2):  # some only start their estimates in the first
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = list(model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    # Some begin so small that vectors of ones stay what they are.
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_recipes_are_of_their_own_optimizer_alone() -> None:
    recipe = RECIPES["llama-124m-adamw-wsd"]
    assert recipe("adamw") == recipe()
    with pytest.raises(
        ConfigError, match=r"llama-124m-adamw-wsd is a run of adamw, not of lion; .*llama-124m-lion"
    ):
        recipe("lion")
