import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amuse_lab.config import RunConfig, short_hash
from amuse_lab.errors import DataError, RecordError
from amuse_lab.records import RunFolder

Make = Callable[..., RunConfig]


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


def test_metrics_are_cut_to_a_step_and_a_torn_line_goes(tiny: Make) -> None:
    folder = RunFolder.create(tiny(), {})
    for step in (1, 2, 2, 3):
        folder.log({"step": step, "loss": 1 / step})
    whole = (folder.path / "metrics.jsonl").read_bytes()
    with (folder.path / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 4, "lo')
    assert [line["step"] for line in folder.metrics()] == [1, 2, 2, 3]
    folder.cut_metrics(3)
    assert (folder.path / "metrics.jsonl").read_bytes() == whole
    folder.cut_metrics(2)
    folder.log({"step": 3, "loss": 0.0})
    assert [line["step"] for line in folder.metrics()] == [1, 2, 2, 3]
    folder.cut_metrics(0)
    assert folder.metrics() == []


@pytest.mark.parametrize(
    "line", [b"garbage", b"\xff", b"[]", b'{"loss": 1}', b'{"step": "x"}', b"[" * 200_000]
)
def test_a_damaged_line_of_metrics_is_named_and_nothing_is_cut(tiny: Make, line: bytes) -> None:
    folder = RunFolder.create(tiny(), {})
    path = folder.path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    before = path.read_bytes()
    for read in (folder.metrics, lambda: folder.cut_metrics(1)):
        with pytest.raises(RecordError, match=f"^{path}, line 2: must be an object with a step"):
            read()
    assert path.read_bytes() == before


def test_metrics_that_are_a_pipe_are_not_waited_for(tiny: Make) -> None:
    folder = RunFolder.create(tiny(), {})
    folder.close()
    (folder.path / "metrics.jsonl").unlink()
    os.mkfifo(folder.path / "metrics.jsonl")
    for read in (folder.metrics, lambda: RunFolder.open(folder.path)):
        with pytest.raises(DataError, match=r"metrics\.jsonl must be a file$"):
            read()


def test_a_line_is_written_whole_by_short_writes(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tiny(), {})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    folder.log({"step": 1, "loss": 2.5})
    assert folder.metrics() == [{"step": 1, "loss": 2.5}]


def test_one_process_writes_a_folder_at_a_time(tiny: Make) -> None:
    folder = RunFolder.create(tiny(), {})
    with pytest.raises(RecordError, match=r"is in use: another process is running it"):
        RunFolder.open(folder.path)
    folder.close()
    folder.close()
    RunFolder.open(folder.path).close()


def test_a_folder_that_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot write in .*: No such file or directory"):
        RunFolder.open(tmp_path / "missing")
