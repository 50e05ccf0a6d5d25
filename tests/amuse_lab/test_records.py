import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amuse_lab.config import RunConfig, short_hash
from amuse_lab.errors import RecordError
from amuse_lab.records import RunFolder, replacing

Make = Callable[..., RunConfig]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("before")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_is_synced_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (events.append("rename"), rename(*paths))[1])
    with replacing(tmp_path / "file") as partial:
        partial.write_text("content")
    assert events == ["sync", "rename", "sync"]
    assert (tmp_path / "file").read_text() == "content"


def test_folder_is_named_by_recipe_time_and_hash(tiny: Make) -> None:
    config = tiny()
    folder = RunFolder.create(config, {"seed": 0})
    assert folder.path.parent == config.runs / "shakespeare"
    assert folder.path.name.endswith(short_hash(config))
    assert json.loads((folder.path / "env.json").read_text()) == {"seed": 0}
    assert json.loads((folder.path / "config.json").read_text())["steps"] == 4


def test_runs_within_a_second_get_folders_of_their_own(tiny: Make) -> None:
    assert len({RunFolder.create(tiny(), {}).path for _ in range(3)}) == 3


def test_metrics_are_readable_line_by_line_while_the_run_goes_on(tiny: Make) -> None:
    folder = RunFolder.create(tiny(), {})
    assert folder.metrics() == []
    folder.log({"step": 1, "loss": 2.5})
    assert folder.metrics() == [{"step": 1, "loss": 2.5}]
    folder.log({"step": 2, "loss": math.inf})
    assert folder.metrics()[1] == {"step": 2, "loss": None}


def test_model_round_trip(tiny: Make) -> None:
    state = {"a": torch.randn(3, 4).T, "b": torch.ones(2)}
    folder = RunFolder.create(tiny(), {})
    folder.write_model(state)
    loaded = load_file(folder.path / "model.safetensors")
    model, metrics = (folder.path / name for name in ("model.safetensors", "metrics.jsonl"))
    assert model.stat().st_mode == metrics.stat().st_mode
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_place_that_is_no_folder_is_a_record_error(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write a run folder in .*: Not a directory; .*--runs"):
        RunFolder.create(tiny(runs=tmp_path / "file"), {})


def test_a_folder_that_cannot_be_filled_is_removed(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_json", full)
    config = tiny()
    with pytest.raises(RecordError, match="No space left"):
        RunFolder.create(config, {})
    assert list((config.runs / "shakespeare").iterdir()) == []
