import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amuse_lab import checkpoint
from amuse_lab.cli import main
from amuse_lab.config import RunConfig, hash_of
from amuse_lab.errors import ConfigError, DataError, RecordError
from amuse_lab.optimizers import Sophia
from amuse_lab.progress import Silence, Status
from amuse_lab.records import RunFolder
from amuse_lab.resume import check_changes, newest_unfinished, saved_config, with_history
from amuse_lab.schedules import SCHEDULES, ScheduleName
from amuse_lab.train import Outcome, train

Make = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]


class Stopping(Silence):
    """Sends a signal at some step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def show(self, status: Status) -> None:
        if status.step == self.step:
            signal.raise_signal(self.number)


class Notes(Silence):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class StoppingNotes(Stopping):
    def __init__(self, step: int, notes: Notes) -> None:
        super().__init__(step)
        self._notes = notes

    def note(self, text: str) -> None:
        self._notes.note(text)


def remains(folder: Path) -> dict[str, Any]:
    """What a run leaves, without times."""
    return {
        "metrics": [
            {name: value for name, value in line.items() if "second" not in name}
            for line in RunFolder(folder).metrics()
        ],
        "state": load_file(checkpoint.finished(folder / "checkpoints")[-1] / "whole.safetensors"),
        "model": load_file(folder / "model.safetensors"),
        "sample": (folder / "sample.txt").read_text(),
        "val_loss": json.loads((folder / "summary.json").read_text())["val_loss"],
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("metrics", "sample", "val_loss"):
        assert found[name] == expected[name]
    for name in ("state", "model"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def summary(outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((outcome.folder / "summary.json").read_text())
    return content


@pytest.mark.parametrize("optimizer", ["amuse", "sf-adamw", "muon", "adamw"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tiny: Make, optimizer: str) -> None:
    config = tiny(optimizer, steps=9, log_every=2, eval_every=3, clip=0.5)
    expected = train(config, Silence())
    first = train(config, Stopping(3))
    assert first.summary["status"] == "interrupted"
    assert first.signal == signal.SIGINT
    resumed = train(config, Silence(), resume=first.folder)
    assert resumed.folder == first.folder
    assert resumed.summary["status"] == "finished"
    assert resumed.summary["seconds"] > first.summary["seconds"]
    assert_same(remains(resumed.folder), remains(expected.folder))


SOPHIA = Sophia(lr=0.01, warmup_steps=2, curvature_batch=2, curvature_every=2, ema=0.9)


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"micro_batch": 1}, {"optimizer": SOPHIA}])
def test_settings_of_the_loop_resume_too(tiny: Make, changes: dict[str, Any]) -> None:
    config = replace(tiny(steps=6), **changes)
    expected = train(config, Silence())
    first = train(config, Stopping(2))
    assert_same(remains(train(config, Silence(), resume=first.folder).folder), remains(expected.folder))


def test_what_was_logged_after_the_checkpoint_is_logged_once(tiny: Make) -> None:
    """A process that is gone leaves lines of steps that will be taken again, and perhaps half a line."""
    config = tiny(steps=6, checkpoint_every=2, keep_last=9)
    expected = train(config, Silence())
    folder = train(config, Stopping(5)).folder
    for path in checkpoint.finished(folder / "checkpoints"):
        if checkpoint.step_of(path) > 2:
            (path / "outline.pt").unlink()
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "tok')
    progress = Notes()
    assert_same(remains(train(config, progress, resume=folder).folder), remains(expected.folder))
    damaged = [note for note in progress.notes if "is damaged" in note]
    assert len(damaged) == 2
    assert progress.notes[-1] == f"going on with {folder} after step 2"


def test_a_run_without_a_checkpoint_begins_again_in_its_folder(tiny: Make) -> None:
    config = tiny(steps=4)
    expected = train(config, Silence())
    folder = RunFolder.create(config, {})
    folder.log({"step": 1, "split": "train", "loss": 5.0})
    folder.close()
    assert_same(remains(train(config, Silence(), resume=folder.path).folder), remains(expected.folder))


def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = train(config, Silence()).folder
    for path in checkpoint.finished(folder / "checkpoints"):
        (path / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(RecordError, match=r"no checkpoint in .* can be used; start the run anew"):
        train(config, Silence(), resume=folder)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_a_finished_run_can_be_made_longer(tiny: Make) -> None:
    """With AMUSE, which knows no end, it is the run that would have been longer from its beginning."""
    expected = remains(train(tiny(steps=8, log_every=4), Silence()).folder)
    short = train(tiny(steps=4, log_every=4), Silence())
    longer = replace(saved_config(short.folder), steps=8)
    check_changes(saved_config(short.folder), longer)
    assert_same(remains(train(longer, Silence(), resume=short.folder).folder), expected)
    assert saved_config(short.folder).steps == 8
    environments = sorted(path.name for path in short.folder.glob("env*"))
    assert environments == ["env-2.json", "env.json"]
    assert json.loads((short.folder / "env-2.json").read_text())["from_step"] == 4


def test_a_run_that_goes_on_has_not_ended(tiny: Make) -> None:
    """Should it be killed now, it is found again."""
    config = tiny(steps=4)
    folder = train(config, Silence()).folder

    class Looking(Silence):
        def show(self, status: Status) -> None:
            assert newest_unfinished(replace(config, steps=8)) == folder
            seen.append(status.step)

    seen: list[int] = []
    train(replace(config, steps=8), Looking(), resume=folder)
    assert seen == [5, 6, 7, 8]
    assert newest_unfinished(replace(config, steps=8)) is None


def test_resuming_what_is_done_changes_nothing(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = train(config, Silence()).folder
    before = remains(folder)
    assert summary(train(config, Silence(), resume=folder))["status"] == "finished"
    assert_same(remains(folder), before)


def test_fewer_steps_than_are_done_are_refused(tiny: Make) -> None:
    folder = train(tiny(steps=4), Silence()).folder
    with pytest.raises(ConfigError, match=r"^steps must be at least the 4 done, got 3$"):
        train(tiny(steps=3), Silence(), resume=folder)
    assert summary(Outcome(folder, {}, "", "", 0))["status"] == "finished"


@pytest.mark.parametrize("optimizer", ["amuse", "sf-adamw", "muon", "adamw"])
def test_the_saved_config_is_the_config(tiny: Make, optimizer: str) -> None:
    config = tiny(optimizer, sinks=("tensorboard",), clip=1.5, seed=7, precision="bf16")
    folder = RunFolder.create(config, {})
    folder.close()
    assert saved_config(folder.path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder: No such file or directory: config.json"),
        ("{", "cannot go on with .*: config.json: "),
        ('{"recipe": "nobody"}', "unknown recipe 'nobody'"),
        (
            '{"recipe": "shakespeare", "optimizer": {"name": "adamw"}, "stepz": 3}',
            "RunConfig has no setting 'stepz': another version wrote it",
        ),
        (
            '{"recipe": "shakespeare", "optimizer": {"name": "adamw"}, "steps": -3}',
            "steps must be at least 1, got -3",
        ),
        (
            '{"recipe": "shakespeare", "optimizer": {"name": "adamw"}, "steps": {}}',
            "cannot go on with .*: config.json: steps must be a whole number, got {}",
        ),
        (
            '{"recipe": "shakespeare", "optimizer": {"name": "adamw"}, "task": "x"}',
            "cannot go on with .*: config.json: task must be an object with settings, got 'x'",
        ),
        ("[" * 200_000, "cannot go on with .*: config.json: "),
    ],
)
def test_a_folder_that_cannot_be_resumed_says_why(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "changes", "message"),
    [
        (
            "amuse",
            {"seed": 3},
            r"^seed must stay 0 .*, got 3: it decides what .*; start a new run$",
        ),
        ("amuse", {"precision": "bf16"}, "^precision must stay 'fp32'"),
        ("amuse", {"clip": 1.0}, "^clip must stay None .*: the steps so far were clipped by it"),
        (
            "adamw",
            {"steps": 8},
            "^steps must be the 4 that the cosine schedule of adamw ends with, got 8$",
        ),
    ],
)
def test_what_decides_the_run_has_to_stay(
    tiny: Make, optimizer: str, changes: dict[str, Any], message: str
) -> None:
    config = tiny(optimizer)
    check_changes(config, config)
    with pytest.raises(ConfigError, match=message):
        check_changes(config, replace(config, **changes))


def test_nested_settings_have_to_stay_and_free_ones_may_change(tiny: Make) -> None:
    config = tiny()
    other = replace(config, task=replace(config.task, batch=4))
    with pytest.raises(ConfigError, match=r"^task.batch must stay 2 .*: the steps so far were taken on it"):
        check_changes(config, other)
    free = {"eval_windows": 2, "eval_left_out": 1, "prompt": "A", "sample_length": 3, "temperature": 1.0}
    loop = {"eval_every": 3, "log_every": 2, "checkpoint_every": 7, "keep_last": 5, "keep_every": 2}
    kept = {"steps": 9, "micro_batch": 1, "threads": 2, "sinks": ("wandb",), "device": "cuda"}
    check_changes(config, replace(config, task=replace(config.task, **free), **loop, **kept))


def test_what_changed_on_the_way_is_recorded_and_the_run_can_still_go_on(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = train(config, Silence()).folder
    second = replace(saved_config(folder), steps=6, eval_every=3)
    train(second, Silence(), resume=folder)
    third = replace(saved_config(folder), steps=7)
    train(third, Silence(), resume=folder)
    assert saved_config(folder) == replace(third, runs=config.runs)
    assert json.loads((folder / "config.json").read_text())["history"] == [
        {"from_step": 4, "changes": {"steps": [4, 6], "eval_every": [2, 3]}},
        {"from_step": 6, "changes": {"steps": [6, 7]}},
    ]


@pytest.mark.parametrize("optimizer", ["amuse", "sf-adamw", "adamw", "muon"])
def test_the_learning_rate_changes_from_here_on(tiny: Make, optimizer: str) -> None:
    """The steps are those of a run whose learning rate was set by hand in between."""
    config = tiny(optimizer, steps=6)
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=0))
    if optimizer == "amuse":
        config = replace(config, optimizer=replace(config.optimizer, t0_steps=2))
    folder = train(config, Stopping(3)).folder
    saved = saved_config(folder)
    lower = replace(saved, optimizer=replace(saved.optimizer, lr=saved.optimizer.lr / 4))
    with pytest.raises(ConfigError, match=r"^optimizer\.lr must stay .*; --from-here changes it"):
        check_changes(saved, lower)
    check_changes(saved, lower, from_here=True)
    train(lower, Silence(), resume=folder)
    rates = [line["lr"] for line in RunFolder(folder).metrics() if line["split"] == "train"]
    undisturbed = train(replace(config, seed=1), Silence()).folder
    usual = [line["lr"] for line in RunFolder(undisturbed).metrics() if line["split"] == "train"]
    assert rates[:3] == usual[:3]
    assert rates[3:] == pytest.approx([rate / 4 for rate in usual[3:]])
    (entry,) = json.loads((folder / "config.json").read_text())["history"]
    lr = config.optimizer.lr
    assert entry == {"from_step": 3, "changes": {"optimizer.lr": [lr, lr / 4]}}
    assert saved_config(folder).optimizer == lower.optimizer


class Unread(Silence):
    """Whoever reads what is printed has seen enough, as `| head` has."""

    def show(self, status: Status) -> None:
        if status.step == 3:
            raise BrokenPipeError


def test_a_run_whose_output_nobody_reads_is_interrupted(tiny: Make) -> None:
    config = tiny(steps=6, checkpoint_every=2)
    with pytest.raises(BrokenPipeError):
        train(config, Unread())
    folder = newest_unfinished(config)
    assert folder is not None
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert train(config, Silence(), resume=folder).summary["status"] == "finished"


def test_a_changed_learning_rate_needs_no_checkpoint_to_be_known(tiny: Make) -> None:
    """The process died after it had begun with another rate, and before its next checkpoint."""
    folder = train(tiny(steps=6), Stopping(3)).folder
    saved = saved_config(folder)
    lower = replace(saved, optimizer=replace(saved.optimizer, lr=saved.optimizer.lr / 4))
    (folder / "config.json").write_text(json.dumps(with_history(folder, lower, 3)))
    assert saved_config(folder).optimizer == lower.optimizer
    assert train(saved_config(folder), Silence(), resume=folder).summary["steps"] == 6
    (entry,) = json.loads((folder / "config.json").read_text())["history"]
    assert entry["from_step"] == 3


def test_a_rate_that_groups_are_made_by_neither_comes_nor_goes(tiny: Make) -> None:
    saved = tiny("adamw")
    assert saved.optimizer.lr_rest is None
    other = replace(saved, optimizer=replace(saved.optimizer, lr_rest=0.01))
    for one, two in ((saved, other), (other, saved)):
        with pytest.raises(ConfigError, match=r"^optimizer\.lr_rest must be None or a number as before"):
            check_changes(one, two, from_here=True)


def test_a_run_of_a_version_with_fewer_settings_goes_on_as_often_as_any(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = train(config, Stopping(2)).folder
    content = json.loads((folder / "config.json").read_text())
    del content["task"]["eval_left_out"], content["keep_every"]
    (folder / "config.json").write_text(json.dumps(content))
    older = folder.rename(folder.with_name(f"{folder.name.partition('Z-')[0]}Z-{hash_of(content)}"))
    assert newest_unfinished(config) == older
    assert newest_unfinished(replace(config, task=replace(config.task, eval_left_out=1))) is None
    for steps in (5, 6, 7):
        train(replace(saved_config(older), steps=steps), Silence(), resume=older)
    history = json.loads((older / "config.json").read_text())["history"]
    assert sorted(history[0]["added"]) == ["keep_every", "task.eval_left_out"]
    assert [entry["changes"] for entry in history] == [{"steps": [n, n + 1]} for n in (4, 5, 6)]


def test_a_damaged_checkpoint_does_not_push_good_ones_out(tiny: Make) -> None:
    config = tiny(steps=8, checkpoint_every=2)
    folder = train(config, Stopping(6)).folder
    root = folder / "checkpoints"
    (root / "step-00000006" / "outline.pt").write_bytes(b"")
    again = replace(config, checkpoint_every=1, keep_last=1)
    progress = Notes()
    train(again, StoppingNotes(5, progress), resume=folder)
    assert [path.name for path in checkpoint.finished(root)] == ["step-00000005"]
    assert any(f"kept as {root / 'unused-step-00000006'}" in note for note in progress.notes)
    assert_same(
        remains(train(again, Silence(), resume=folder).folder), remains(train(again, Silence()).folder)
    )


def test_the_learning_rate_changes_on_the_command_line(
    tiny: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny(steps=4), Silence()).folder
    more = ["train", "--resume", str(folder), "--steps", "6", "--optimizer.lr", "0.001"]
    assert main(more) == 2
    assert "--from-here changes it" in capsys.readouterr().err
    assert main([*more, "--from-here"]) == 0
    assert [line["lr"] for line in RunFolder(folder).metrics() if line["split"] == "train"][-1] <= 0.001


def test_an_edited_config_is_not_believed(tiny: Make) -> None:
    folder = train(tiny(steps=4), Silence()).folder
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["optimizer"]["lr"] = 0.5
    file.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"config\.json has been edited: .*; undo that"):
        saved_config(folder)


def test_an_edited_config_in_a_folder_of_another_name_is_not_believed_either(tiny: Make) -> None:
    """What the checkpoint was trained with counts."""
    config = tiny(steps=4)
    folder = train(config, Silence()).folder
    folder = folder.rename(folder.with_name("the-best-one"))
    content = json.loads((folder / "config.json").read_text())
    content["optimizer"]["lr"] = 0.5
    (folder / "config.json").write_text(json.dumps(content))
    edited = saved_config(folder)
    message = r"^the checkpoint was trained with optimizer\.lr 0\.005, but config\.json says 0\.5: undo"
    with pytest.raises(RecordError, match=message):
        train(replace(edited, steps=6), Silence(), resume=folder)


def test_lost_lines_of_metrics_are_noticed(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = train(config, Silence()).folder
    metrics = folder / "metrics.jsonl"
    size = metrics.stat().st_size
    *kept, _ = metrics.read_text().splitlines(keepends=True)
    for text in ("".join(kept), None):
        if text is None:
            metrics.unlink()
        else:
            metrics.write_text(text)
        progress = Notes()
        train(config, progress, resume=folder)
        (note,) = [note for note in progress.notes if "has lost lines" in note]
        assert f": {len(text or ''):,} of the {size:,} bytes up to step 4 are left" in note
    undamaged = train(replace(config, seed=1), Silence()).folder
    progress = Notes()
    train(replace(config, seed=1), progress, resume=undamaged)
    assert len(progress.notes) == 1


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def hostile(path: Path) -> None:
    torch.save(Harmful(), path / "outline.pt")


def foreign(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, path / "outline.pt")


def without_part(path: Path) -> None:
    state = load_file(path / "whole.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, path / "whole.safetensors")


def of_another_model(path: Path) -> None:
    outline = torch.load(path / "outline.pt", weights_only=True)
    model = outline["trainer"]["model"]
    model["unheard.of"] = model.pop(next(iter(model)))
    torch.save(outline, path / "outline.pt")


def resealed(path: Path) -> None:
    """The manifest of what is there now."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [hostile, foreign, without_part, of_another_model])
def test_a_checkpoint_that_cannot_be_loaded_is_one_line_and_the_one_before_is_used(
    tiny: Make, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its manifest is right."""
    monkeypatch.chdir(tmp_path)
    config = tiny(steps=6, checkpoint_every=2, keep_last=9)
    expected = remains(train(config, Silence()).folder)
    folder = train(replace(config, runs=tmp_path / "others"), Stopping(5)).folder
    newest = checkpoint.finished(folder / "checkpoints")[-1]
    assert checkpoint.step_of(newest) == 5
    change(newest)
    resealed(newest)
    progress = Notes()
    train(replace(config, runs=tmp_path / "others"), progress, resume=folder)
    first, moved, last = progress.notes
    assert moved == f"what could not be used is kept as {newest.with_name(f'unused-{newest.name}')}"
    assert first.startswith(f"checkpoint {newest} cannot be loaded and is not used: ")
    assert "\n" not in first
    assert "weights_only" not in first
    assert "trust" not in first
    assert last == f"going on with {folder} after step 4"
    assert not (tmp_path / "executed").exists()
    assert_same(remains(folder), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_can_be_made_longer_if_its_schedule_has_no_end(tiny: Make, schedule: ScheduleName) -> None:
    config = tiny("adamw")
    warmup = 0 if schedule == "none" else 1
    config = replace(config, optimizer=replace(config.optimizer, schedule=schedule, warmup_steps=warmup))
    endless = config.optimizer.build(config.task.build_model(), steps=4)
    longer = config.optimizer.build(config.task.build_model(), steps=8)
    rates = []
    for optimizer in (endless, longer):
        for _ in range(4):
            optimizer.step()
            rates.append(optimizer.telemetry()["lr"])
    if rates[:4] == rates[4:]:  # the steps so far are those of the longer run
        check_changes(config, replace(config, steps=8))
    else:
        with pytest.raises(ConfigError, match=f"^steps must be the 4 that the {schedule} schedule of adamw"):
            check_changes(config, replace(config, steps=8))


def test_the_newest_unfinished_run_of_a_config_is_found(tiny: Make) -> None:
    config = tiny(steps=4)
    assert newest_unfinished(config) is None
    train(config, Silence())
    assert newest_unfinished(config) is None
    train(replace(config, seed=1), Stopping(2))
    assert newest_unfinished(config) is None
    older, newer = (train(config, Stopping(2)).folder for _ in range(2))
    assert newest_unfinished(config) == newer
    train(config, Silence(), resume=newer)
    assert newest_unfinished(config) == older


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text('{"recipe": '),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("[" * 200_000),
        make_folder,
        os.mkfifo,
    ],
)
def test_a_damaged_run_is_passed_over(tiny: Make, name: str, damage: Callable[[Path], object]) -> None:
    config = tiny()
    intact, damaged = (RunFolder.create(config, {}) for _ in range(2))
    (damaged.path / name).unlink(missing_ok=True)
    damage(damaged.path / name)
    os.utime(damaged.path / "config.json", (2**32, 2**32))  # the newest
    assert newest_unfinished(config) == intact.path


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"config\.json must be a file$"):
        saved_config(tmp_path)


def test_a_folder_belongs_to_one_process_at_a_time(tiny: Make) -> None:
    config = tiny(steps=4)
    folder = RunFolder.create(config, {})
    with pytest.raises(RecordError, match=r"is in use: another process is running it"):
        train(config, Silence(), resume=folder.path)
    folder.close()
    train(config, Silence(), resume=folder.path)


def test_a_command_that_is_stopped_can_be_given_again(tmp_path: Path) -> None:
    small = [
        *("--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.n-layer", "1"),
        *("--task.batch", "1", "--task.eval-windows", "2", "--task.sample-length", "3"),
    ]
    command = [sys.executable, "-m", "amuse_lab", "train", "shakespeare", "--resume", "--eval-every", "5"]
    command += [*small, "--steps", "1000000"]
    for number, status, notes in ((signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 1)):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("step ")
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == status
        *before, last = error.splitlines()
        assert last.startswith("amuse-lab: interrupted after step ")
        assert sum("going on with" in line for line in before) == notes
        assert sum(" steps read it " in line for line in before) == 1
    (folder,) = tmp_path.glob("runs/shakespeare/*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert (folder / "model.safetensors").exists()
    steps = [line["step"] for line in RunFolder(folder).metrics() if line["split"] == "train"]
    assert steps == list(range(10, steps[-1] + 1, 10))


def test_two_that_resume_at_once_start_one_run(tmp_path: Path) -> None:
    small = ["--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.n-layer", "1"]
    command = [sys.executable, "-m", "amuse_lab", "train", "shakespeare", "--resume", *small]
    command += ["--task.batch", "1", "--steps", "1000000", "--eval-every", "1000000"]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.05)
    refused, running = sorted(both, key=lambda process: process.poll() is None)
    _, error = refused.communicate()
    assert refused.returncode == 2
    assert error.splitlines()[-1].endswith(" is in use: another process is running it")
    running.terminate()
    running.communicate(timeout=60)
    assert len(list(tmp_path.glob("runs/shakespeare/*/config.json"))) == 1


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_no_trace(tmp_path: Path, kills: int) -> None:
    """Real processes, really killed; `benchmarks/fault_test.py --kills 50` is the long form."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "fault_test.py", "--kills", str(kills), "--steps", "40"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == kills
    assert report["inside checkpoint writes"] >= 1
    assert report["different"] == []


def test_a_recipe_that_is_not_known_finds_no_damaged_run(tiny: Make) -> None:
    config = tiny(recipe="of my own")
    folder = RunFolder.create(config, {})
    folder.close()
    (folder.path / "config.json").write_text("{")
    assert newest_unfinished(config) is None
