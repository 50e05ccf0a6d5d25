import json
import math
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amuse_lab import run as run_module
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError, RecordError, TrainingError
from amuse_lab.progress import PlainProgress, Status
from amuse_lab.records import RunFolder
from amuse_lab.run import title_of
from amuse_lab.tasks.lm.bundled import BUNDLED
from amuse_lab.tasks.lm.task import LanguageModelTask
from amuse_lab.train import Outcome, train
from amuse_lab.trainer import Trainer
from tests.amuse_lab.tiny_text import tiny_text

Make = Callable[..., RunConfig]
OPTIMIZERS = ["amuse", "sf-adamw", "muon", "adamw"]


class Recorder(PlainProgress):
    """Keeps what it is shown; may press Ctrl-C at some step."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.shown: list[Status] = []
        self.interrupt_at = interrupt_at

    def show(self, status: Status) -> None:
        self.shown.append(status)
        if status.step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)


def run(config: RunConfig) -> Outcome:
    return train(config, Recorder())


@contextmanager
def file_sizes() -> Iterator[Callable[[int], None]]:
    """Inside, the yielded function limits how large any file may grow, as if the disk were full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [500, 3000, 6000, 12_000])
def test_a_disk_without_room_is_one_line_and_the_run_can_go_on(tiny: Make, size: int) -> None:
    """The first size does not hold the metrics or a summary, later ones stop the files of a checkpoint."""
    config = tiny(steps=4, checkpoint_every=1)

    class Filling(Recorder):
        def show(self, status: Status) -> None:
            if status.step == 2:
                limit(size)

    with (
        file_sizes() as limit,
        pytest.raises(RecordError, match=r"^cannot write [^\n]*: [^\n]*; make room and go on with --resume$"),
    ):
        train(config, Filling())
    (folder,) = (config.runs / config.recipe).iterdir()
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]
    if size > 500:
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("failed", 3)
        assert "make room" in summary["failure"]
    else:
        assert not (folder / "summary.json").exists()
    assert train(config, Recorder(), resume=folder).summary["status"] == "finished"


def read_json(outcome: Outcome, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((outcome.folder / name).read_text())
    return content


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_run_folder_is_complete(tiny: Make, optimizer: str) -> None:
    config = tiny(optimizer, steps=5)
    outcome = run(config)
    assert {path.name for path in outcome.folder.iterdir()} == {
        *("config.json", "env.json", "metrics.jsonl", "summary.json"),
        *("model.safetensors", "curve.png", "sample.txt", "checkpoints"),
    }
    summary = read_json(outcome, "summary.json")
    assert summary == outcome.summary
    assert summary["status"] == "finished"
    assert (summary["recipe"], summary["optimizer"], summary["seed"]) == ("shakespeare", optimizer, 0)
    assert (summary["steps"], summary["tokens"]) == (5, 160)
    assert summary["bits_per_byte"] == pytest.approx(summary["val_loss"] / math.log(2) * 421 / 420)
    assert summary["tokens_per_second"] == 160 / summary["seconds"]
    assert summary["peak_memory_bytes"] > 0
    assert read_json(outcome, "config.json")["optimizer"]["name"] == optimizer
    assert (outcome.folder / "sample.txt").read_text().startswith("HAMLET\n")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_metrics_hold_the_training_loss_and_both_evaluations(tiny: Make, optimizer: str) -> None:
    lines = RunFolder(run(tiny(optimizer, steps=5)).folder).metrics()
    steps = {
        split: [line["step"] for line in lines if line["split"] == split]
        for split in ("train", "val_x", "val_y")
    }
    assert steps == {"train": [1, 2, 3, 4, 5], "val_x": [2, 4, 5], "val_y": [2, 4, 5]}
    for line in lines:
        assert line["tokens"] == 32 * line["step"]
        assert line["seconds"] > 0
        expected = {"lr"} if line["split"] == "train" else {"bits_per_byte"}
        assert expected <= line.keys()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_saved_model_is_x(tiny: Make, optimizer: str) -> None:
    config = tiny(optimizer)
    outcome = run(config)
    model = config.task.build_model()
    model.load_state_dict(load_file(outcome.folder / "model.safetensors"))
    task = config.task.build(seed=0, device=torch.device("cpu"))
    assert task.evaluate(model, full=True)["loss"] == outcome.summary["val_loss"]
    coincide = outcome.summary["val_loss"] == outcome.summary["val_loss_y"]
    assert coincide == (optimizer in ("muon", "adamw"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_seed_gives_the_same_metrics_but_for_times(tiny: Make, optimizer: str) -> None:
    def metrics(seed: int) -> list[dict[str, Any]]:
        lines = RunFolder(run(tiny(optimizer, seed=seed)).folder).metrics()
        return [{key: value for key, value in line.items() if "second" not in key} for line in lines]

    assert metrics(0) == metrics(0)
    assert metrics(0) != metrics(1)


def test_how_often_one_evaluates_does_not_change_the_run(tiny: Make) -> None:
    often, once = run(tiny(steps=6, eval_every=1)), run(tiny(steps=6, eval_every=6))
    assert often.summary["val_loss"] == once.summary["val_loss"]


def test_training_loss_is_the_mean_since_the_line_before(tiny: Make) -> None:
    def losses(log_every: int) -> list[float]:
        lines = RunFolder(run(tiny(steps=5, log_every=log_every)).folder).metrics()
        return [line["loss"] for line in lines if line["split"] == "train"]

    each = losses(1)
    assert losses(2) == pytest.approx([sum(each[:2]) / 2, sum(each[2:4]) / 2, each[4]])


def test_progress_is_shown_at_every_line(tiny: Make) -> None:
    recorder = Recorder()
    train(tiny(steps=5, log_every=2, eval_every=3), recorder)
    assert [(status.step, status.evaluated) for status in recorder.shown] == [
        *((2, False), (3, True), (4, False), (5, True)),
    ]
    assert recorder.shown[0].at_x == {}
    assert recorder.shown[-1].seconds_left == 0
    assert recorder.shown[-1].rate > 0


def test_lines_of_training_tell_the_speed(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amuse_lab.environment.peak_flops", lambda _: 1e9)
    config = tiny(steps=6, log_every=3)
    flops = config.task.build(seed=0, device=torch.device("cpu")).flops_per_unit
    lines = [line for line in RunFolder(run(config).folder).metrics() if line["split"] == "train"]
    parts = ("seconds_data", "seconds_forward_backward", "seconds_optimizer")
    previous = 0.0
    for line in lines:
        assert sum(line[part] for part in parts) == pytest.approx((line["seconds"] - previous) / 3)
        assert line["tokens_per_second"] == pytest.approx(3 * 32 / (line["seconds"] - previous))
        expected = line["tokens_per_second"] * flops / 1e9
        assert line["model_flops_utilization"] == pytest.approx(expected)
        previous = line["seconds"]
    assert len(lines) == 2


def test_clipping_bounds_the_gradient(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, limit: float) -> None:
        parameters = list(parameters)
        clip(parameters, limit)
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    run(tiny(clip=0.01))
    assert len(norms) == 4
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms)


def test_interrupt_saves_and_says_so(tiny: Make) -> None:
    outcome = train(tiny(steps=1000), Recorder(interrupt_at=3))
    summary = read_json(outcome, "summary.json")
    assert summary["status"] == "interrupted"
    assert summary["steps"] == 3
    assert summary["val_loss"] is None
    assert load_file(outcome.folder / "model.safetensors")
    assert (outcome.folder / "curve.png").exists()
    assert not (outcome.folder / "sample.txt").exists()


def test_an_interrupt_before_the_evaluation_at_y_leaves_its_values_out(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is sampled between the two evaluations on all validation data."""

    def interrupted(_: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "sample", interrupted)
    summary = read_json(train(tiny(), Recorder()), "summary.json")
    assert summary["status"] == "interrupted"
    assert summary["val_loss"] > 0
    assert summary["val_loss_y"] is None
    assert summary["bits_per_byte_y"] is None


def failing_run(config: RunConfig, message: str) -> dict[str, Any]:
    with pytest.raises(TrainingError, match=message):
        run(config)
    (folder,) = (config.runs / "shakespeare").iterdir()
    assert not (folder / "model.safetensors").exists()
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    return summary


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loss_that_is_not_finite_fails_the_run(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    usual = LanguageModelTask.loss
    calls = iter((1.0, 1.0, math.nan))
    monkeypatch.setattr(LanguageModelTask, "loss", lambda *arguments: usual(*arguments) * next(calls))
    summary = failing_run(tiny(optimizer, eval_every=100), "the training loss of step 3 is nan")
    assert summary["steps"] == 2
    assert "step 3" in summary["failure"]


def test_a_gradient_that_is_not_finite_fails_the_run(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = LanguageModelTask.loss

    def poisoned(*arguments: Any) -> torch.Tensor:
        loss = usual(*arguments)
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(LanguageModelTask, "loss", poisoned)
    assert failing_run(tiny(), "^step 1: ")["steps"] == 0


def test_an_evaluation_that_is_not_finite_fails_the_run(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModelTask, "evaluate", lambda *_, **__: {"loss": math.inf})
    failing_run(tiny(), "the validation loss after step 2 is inf at x and inf at y")


def test_any_other_error_is_recorded_and_raised(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(run_module, "draw_curve", broken)
    config = tiny()
    with pytest.raises(RuntimeError, match="out of ideas"):
        run(config)
    (summary,) = config.runs.glob("*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "failed"


def test_nothing_is_created_for_a_request_that_cannot_be_met(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="device must be one that torch can use here, got 'abacus'"):
        run(tiny(device="abacus"))

    def missing() -> None:
        raise DataError("no text")

    config = tiny()
    monkeypatch.setitem(BUNDLED, "tiny", replace(tiny_text(), check=missing))
    with pytest.raises(DataError, match="no text"):
        run(config)
    assert list(tmp_path.iterdir()) == []


def test_threads_are_set(tiny: Make) -> None:
    outcome = run(tiny(threads=2))
    assert read_json(outcome, "env.json")["threads"] == 2


def test_the_title_of_the_picture_names_the_data(tiny: Make) -> None:
    config = tiny("adamw", seed=3)
    assert title_of(config) == "shakespeare on tiny with adamw, seed 3"
    own = replace(config, task=replace(config.task, data="shakespeare"))
    assert title_of(own) == "shakespeare on shakespeare with adamw, seed 3"


def test_a_run_that_reads_its_text_more_than_once_says_so_once(
    tiny: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """236 windows of 16, two a step."""
    run(tiny(steps=118))
    assert capsys.readouterr().err == ""
    run(tiny(steps=236))
    error = capsys.readouterr().err
    assert error == "amuse-lab: the training text has 3,776 tokens: 236 steps read it 2.0 times\n"
