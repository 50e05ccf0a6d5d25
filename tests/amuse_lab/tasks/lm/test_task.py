import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.protocols import Task

Make = Callable[..., RunConfig]


@pytest.fixture
def task(tiny: Make) -> Task:
    return tiny().task.build(seed=0, device=torch.device("cpu"))


class Uniform(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 256)


def test_targets_follow_their_inputs(task: Task) -> None:
    inputs, targets = task.batch(3)
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert task.units_per_step == 32


def test_uniform_guessing_costs_eight_bits_per_byte(task: Task) -> None:
    for full in (True, False):
        measured = task.evaluate(Uniform(), full=full)
        assert measured["bits_per_byte"] == pytest.approx(8)
        assert measured["loss"] == pytest.approx(math.log(256))
    assert task.loss(Uniform(), task.batch(0)).item() == pytest.approx(math.log(256))


def test_full_evaluation_is_the_mean_over_all_windows(tiny: Make) -> None:
    config = tiny().task
    model = config.build_model()
    device = torch.device("cpu")
    full = config.build(seed=0, device=device).evaluate(model, full=True)
    every_window = replace(config, eval_windows=10_000).build(seed=0, device=device)
    assert every_window.evaluate(model, full=False) == full


def test_sample_starts_with_the_prompt_and_repeats(tiny: Make, task: Task) -> None:
    model = tiny().task.build_model()
    text = task.sample(model)
    assert text is not None
    assert text.startswith("HAMLET\n")
    assert text == task.sample(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"prompt": ""}, "prompt must be"),
        ({"data": "tin"}, "unknown data set 'tin'; did you mean 'tiny'?"),
    ],
)
def test_impossible_settings_are_rejected(tiny: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(tiny().task, **change)


def test_context_longer_than_the_text_is_rejected(tiny: Make) -> None:
    config = tiny().task
    config = replace(config, model=replace(config.model, context=420))
    with pytest.raises(ConfigError, match="context must be shorter than each text, here 420 bytes, got 420"):
        config.build(seed=0, device=torch.device("cpu"))
