import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amuse_lab.cli import main
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError
from amuse_lab.protocols import Task
from amuse_lab.tasks.lm.loader import open_tokens
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_lab.tasks.lm.task import flops_per_token

Make = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.fixture
def task(tiny: Make) -> Task:
    return tiny().task.build(seed=0, device=torch.device("cpu"))


class Uniform(nn.Module):
    def __init__(self, vocabulary: int = 256) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.vocabulary)
        return logits if targets is None else nn.functional.cross_entropy(logits.mT, targets)


def test_targets_follow_their_inputs(task: Task) -> None:
    inputs, targets = task.batch(3)
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert task.units_per_step == 32


def test_uniform_guessing_costs_eight_bits_a_token(task: Task) -> None:
    for full in (True, False):
        measured = task.evaluate(Uniform(), full=full)
        # The end of its one document costs as much as a byte, and is none.
        assert measured["bits_per_byte"] == pytest.approx(8 * 421 / 420)
        assert measured["loss"] == pytest.approx(math.log(256))
    assert task.loss(Uniform(), task.batch(0)).item() == pytest.approx(math.log(256))


def test_full_evaluation_is_the_mean_over_all_windows(tiny: Make) -> None:
    config = tiny().task
    model = config.build_model()
    device = torch.device("cpu")
    full = config.build(seed=0, device=device).evaluate(model, full=True)
    every_window = replace(config, eval_windows=10_000).build(seed=0, device=device)
    assert every_window.evaluate(model, full=False) == full


def test_an_evaluation_may_leave_out_what_another_one_has_seen(tiny: Make) -> None:
    config = tiny().task
    model = config.build_model()
    device = torch.device("cpu")
    built = config.build(seed=0, device=device)
    n = len(built._text.validation(None))

    def loss(**changes: int) -> float:
        return float(
            replace(config, **changes).build(seed=0, device=device).evaluate(model, full=False)["loss"]
        )

    seen, rest = loss(eval_windows=2), loss(eval_windows=n, eval_left_out=2)
    assert built.evaluate(model, full=True)["loss"] == pytest.approx((2 * seen + (n - 2) * rest) / n)
    full = replace(config, eval_left_out=2).build(seed=0, device=device).evaluate(model, full=True)
    assert full == built.evaluate(model, full=True)
    with pytest.raises(ConfigError, match=rf"^eval_left_out must be below the {n} there are, got {n}"):
        loss(eval_left_out=n)
    with pytest.raises(ConfigError, match=r"^eval_left_out must be at least 0, got -1"):
        loss(eval_left_out=-1)


def test_operations_of_a_token_are_those_that_are_counted() -> None:
    """Matrix products as torch counts them; attention by hand: two products forward, four backward."""
    config = ModelConfig(n_embd=32, n_head=2, n_layer=3, context=24, vocabulary=300, mlp_multiple=16)
    model = Llama(config)
    tokens = torch.zeros(1, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    attention = 3 * 6 * (2 * 24 * 24 * 32)
    assert 24 * flops_per_token(config) == products + attention


def test_rows_of_a_batch_are_rows_of_the_batch(task: Task) -> None:
    for whole, part in zip(task.batch(5), task.batch(5, slice(1, 2)), strict=True):
        assert torch.equal(whole[1:2], part)


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
    ],
)
def test_impossible_settings_are_rejected(tiny: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(tiny().task, **change)


def test_text_that_was_not_prepared_is_named(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data/tin holds no prepared text: amuse-lab prepare tin"):
        replace(tiny().task, data="tin").build(seed=0, device=torch.device("cpu"))


def test_prepared_text_is_trained_on_and_measured(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform guessing over v tokens costs log2(v) bits a token, whatever the tokens stand for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"{n} is a number and {n + 1} is the next" for n in range(3000))
    )
    options = ["--from", str(tmp_path / "text.txt"), "--tokenizer", "bpe-300", "--validation", "0.2"]
    assert main(["prepare", "numbers", *options]) == 0
    config = tiny().task
    small = replace(config, data="numbers")
    with pytest.raises(ConfigError, match="vocabulary must be at least the 300 of numbers, got 256"):
        small.build(seed=0, device=torch.device("cpu"))
    config = replace(small, model=replace(config.model, vocabulary=320), prompt="number")
    task = config.build(seed=0, device=torch.device("cpu"))
    inputs, targets = task.batch(2)
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(task.batch(2)[0], inputs)
    assert int(inputs.max()) >= 256  # tokens, not bytes

    validation = open_tokens("numbers", "validation")
    measured = task.evaluate(Uniform(320), full=True)
    assert measured["loss"] == pytest.approx(math.log(320))
    expected = math.log2(320) * len(validation) / validation.bytes
    assert measured["bits_per_byte"] == pytest.approx(expected)
    text = task.sample(config.build_model())
    assert text is not None
    assert text.startswith("number")


def test_a_fingerprint_is_that_of_the_tokens(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a folder that has moved, another where as many other words were prepared."""
    monkeypatch.chdir(tmp_path)
    prints = {}
    for name, word in (("one", "number"), ("other", "letter")):
        text = "\n\n".join(f"{n} is a {word} and {n + 1} is the next" for n in range(3000))
        (tmp_path / f"{name}.txt").write_text(text)
        options = ["--from", str(tmp_path / f"{name}.txt"), "--tokenizer", "bytes", "--validation", "0.2"]
        assert main(["prepare", name, *options]) == 0
        prints[name] = replace(tiny().task, data=name).build(seed=0, device=CPU).fingerprint
    (tmp_path / "data" / "one").rename(tmp_path / "moved")
    moved = replace(tiny().task, data=str(tmp_path / "moved")).build(seed=1, device=CPU)
    assert moved.fingerprint == prints["one"]
    assert len(set(prints.values())) == 2


def test_context_longer_than_the_text_is_rejected(tiny: Make) -> None:
    config = tiny().task
    config = replace(config, model=replace(config.model, context=3781))
    with pytest.raises(ConfigError, match=r"context must be in \[1, 3781\) for .*tiny-bytes, got 3781"):
        config.build(seed=0, device=torch.device("cpu"))
