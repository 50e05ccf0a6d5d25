import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.config import RunConfig, from_json, short_hash, to_json
from amuse_lab.errors import ConfigError
from amuse_lab.recipes.lm import shakespeare

Make = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -3),
        ("eval_every", 0),
        ("log_every", 0),
        ("seed", -1),
        ("clip", 0.0),
        ("clip", math.nan),
        ("threads", 0),
        ("micro_batch", 0),
        ("checkpoint_every", 0),
        ("keep_last", 0),
        ("keep_every", 0),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(tiny: Make, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be .*, got {value}$"):
        tiny(**{name: value})


@pytest.mark.parametrize(
    ("name", "choices"), [("precision", "fp32, amp-bf16, bf16"), ("parallel", "ddp, fsdp")]
)
def test_a_choice_that_there_is_not_lists_those_that_there_are(tiny: Make, name: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be one of {choices}, got 'fp8'$"):
        tiny(**{name: "fp8"})


@pytest.mark.parametrize("optimizer", ["amuse", "sf-adamw", "muon", "adamw"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
    ],
)
def test_every_optimizer_checks_its_settings(optimizer: str, name: str, value: float) -> None:
    config = shakespeare(optimizer).optimizer
    with pytest.raises(ConfigError, match=rf"^{name} must be .*, got {value}$"):
        replace(config, **{name: value})


def test_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_json_form_holds_every_field_and_the_names(tiny: Make) -> None:
    content = json.loads(json.dumps(to_json(tiny("muon"))))
    assert content["optimizer"]["name"] == "muon"
    assert content["optimizer"]["lr_rest"] > 0
    assert content["task"]["name"] == "lm"
    assert content["task"]["model"]["n_embd"] == 16
    assert content["runs"].endswith("runs")
    assert content["clip"] is None


def test_hash_depends_on_the_experiment_and_not_on_the_place(tiny: Make) -> None:
    config = tiny()
    assert len(short_hash(config)) == 8
    assert short_hash(config) == short_hash(replace(config, runs=Path("elsewhere")))
    assert short_hash(config) != short_hash(replace(config, seed=1))
    assert short_hash(config) != short_hash(tiny("adamw"))


@pytest.mark.parametrize("optimizer", ["amuse", "adamw"])
def test_a_config_survives_its_json_form(tiny: Make, optimizer: str) -> None:
    config = tiny(optimizer, clip=0.5, sinks=("wandb", "tensorboard"), keep_every=7, seed=3)
    content = json.loads(json.dumps(to_json(config)))
    assert from_json(replace(tiny(optimizer), steps=99), content) == config


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("steps",), "many", "steps must be a whole number, got 'many'"),
        (("steps",), 3.5, "steps must be a whole number, got 3.5"),
        (("steps",), True, "steps must be a whole number, got True"),
        (("clip",), "x", "clip must be a number or null, got 'x'"),
        (("compile",), 1, "compile must be true or false, got 1"),
        (("precision",), "fp8", "precision must be one of fp32, amp-bf16, bf16, got 'fp8'"),
        (("sinks",), "wandb", "sinks must be a list, each one of tensorboard, wandb, trackio, got 'wandb'"),
        (("device",), 3, "device must be text, got 3"),
        (("task",), "lm", "task must be an object with settings, got 'lm'"),
        (("task", "batch"), None, "batch must be a whole number, got None"),
        (("task", "model", "tied"), "yes", "tied must be true or false, got 'yes'"),
        (("optimizer", "lr"), [1], "lr must be a number, got [1]"),
    ],
)
def test_a_value_of_another_kind_is_named_in_words(
    tiny: Make, place: tuple[str, ...], value: object, message: str
) -> None:
    content = within = json.loads(json.dumps(to_json(tiny())))
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = value
    with pytest.raises(ConfigError) as caught:
        from_json(tiny(), content)
    assert str(caught.value) == message
