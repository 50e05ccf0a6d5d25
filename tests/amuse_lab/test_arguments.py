from collections.abc import Callable
from pathlib import Path

import pytest

from amuse_lab.arguments import parse, take_option
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.tasks.lm.task import LanguageModelConfig

Make = Callable[..., RunConfig]


def applied(config: RunConfig, *arguments: str) -> RunConfig:
    return parse(RunConfig, arguments, default=config, prog="amuse-lab train shakespeare", description="")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optimizer", "muon", "--steps", "3"],
        ["--steps", "3", "--optimizer", "muon"],
        ["--optimizer=muon", "--steps", "3"],
        ["--optimizer", "adamw", "--steps", "3", "--optimizer=muon"],
    ],
)
def test_option_is_taken_from_anywhere(arguments: list[str]) -> None:
    assert take_option(arguments, "--optimizer") == ("muon", ["--steps", "3"])


def test_options_below_it_are_left_alone() -> None:
    assert take_option(["--optimizer.lr=1", "x"], "--optimizer") == (None, ["--optimizer.lr=1", "x"])


@pytest.mark.parametrize("arguments", [["--optimizer"], ["--optimizer", "--steps", "3"]])
def test_option_without_a_value(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--optimizer needs a value"):
        take_option(arguments, "--optimizer")


def test_nothing_changes_without_overrides(tiny: Make) -> None:
    assert applied(tiny("muon")) == tiny("muon")


def test_nested_settings_in_both_spellings(tiny: Make, tmp_path: Path) -> None:
    config = applied(
        tiny("muon"),
        *("--optimizer.lr-rest", "0.5", "--optimizer.warmup_steps=7", "--task.model.n-head", "4"),
        *("--clip", "1.5", "--runs", str(tmp_path), "--task.model.no-tied"),
    )
    assert config.optimizer.lr_rest == 0.5
    assert config.optimizer.warmup_steps == 7
    assert isinstance(config.task, LanguageModelConfig)
    assert config.task.model.n_head == 4
    assert not config.task.model.tied
    assert config.clip == 1.5
    assert config.runs == tmp_path
    assert applied(config, "--clip", "None").clip is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "unknown option --stepz; did you mean --steps?"),
        (["--lr", "3"], "unknown option --lr; did you mean --optimizer.lr?"),
        (
            ["--optimizer.momentun", "3"],
            "unknown option --optimizer.momentun; did you mean --optimizer.momentum?",
        ),
        (["--zzzzzzzz"], "unknown option --zzzzzzzz; --help lists the options"),
        (["--recipe", "other"], "unknown option --recipe;"),
        (["--steps", "3", "extra"], "unexpected argument 'extra'"),
        (["--steps", "-3"], "steps must be at least 1, got -3"),
        (["--steps", "many"], "--steps must be a whole number, got 'many'"),
        (["--steps"], "--steps needs a value"),
        (["--precision", "fp8"], "--precision must be one of fp32, amp-bf16, bf16, got 'fp8'"),
        (["--clip", "much"], "--clip must be FLOAT or None, got 'much'"),
        (["--task.model.n-head", "5"], "n_embd must be a multiple of 2 * n_head = 10, got 16"),
        (["--optimizer.beta1", "nan"], "beta1 must be in [0, 1), got nan"),
    ],
)
def test_a_wrong_override_is_one_line(tiny: Make, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        applied(tiny(), *arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
