import hashlib
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amuse_lab import checkpoint
from amuse_lab.errors import RecordError
from amuse_lab.parallel import ALONE

CPU = torch.device("cpu")


def example() -> dict[str, Any]:
    flat = torch.arange(12.0)
    return {
        "model": {
            "weight": torch.randn(3, 4).T,
            "half": torch.randn(5).bfloat16(),
            "mask": torch.ones(2) > 0,
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0), "z": flat[:6]}, 1: {"z": flat[6:], "beta": 0.1 + 0.2}},
            "groups": [{"betas": (0.9, 0.999), "name": "muon", "lr": None, "nesterov": True}],
        },
        "shared": [flat, flat],
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        pairs = zip(left, right, strict=True)
        return type(left) is type(right) and all(same(a, b) for a, b in pairs)
    return type(left) is type(right) and left == right


def load(path: Path) -> dict[str, Any]:
    return checkpoint.load(path, ALONE, device=CPU)


def newest(root: Path, report: Callable[[str], None]) -> Path | None:
    return next(checkpoint.intact(root, report), None)


def unreported(text: str) -> None:
    raise AssertionError(text)


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    state = example()
    path = checkpoint.save(tmp_path, 40, state, ALONE)
    assert path == tmp_path / "step-00000040"
    assert newest(tmp_path, unreported) == path
    assert same(load(path), state)
    assert list(tmp_path.iterdir()) == [path]


def test_the_manifest_has_the_sum_of_every_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, example(), ALONE)
    manifest = json.loads((path / "manifest.json").read_text())
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    assert manifest["step"] == 1


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    drawn()
    path = checkpoint.save(tmp_path, 1, {}, ALONE)
    expected = drawn()
    drawn()
    load(path)
    assert drawn() == expected


def truncate(path: Path) -> None:
    os.truncate(path / "whole.safetensors", 100)


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "whole.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "whole.safetensors").write_bytes(content)


def remove(path: Path) -> None:
    (path / "outline.pt").unlink()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garble_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def list_nothing(path: Path) -> None:
    (path / "manifest.json").write_text('{"step": 1, "files": {}}')


def nest_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 200_000)


def replace_manifest_by_a_folder(path: Path) -> None:
    remove_manifest(path)
    (path / "manifest.json").mkdir()


def replace_manifest_by_a_pipe(path: Path) -> None:
    remove_manifest(path)
    os.mkfifo(path / "manifest.json")


def link_manifest_to_itself(path: Path) -> None:
    remove_manifest(path)
    (path / "manifest.json").symlink_to("manifest.json")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "whole.safetensors has 100 bytes instead of "),
        (flip_a_bit, "the SHA-256 of whole.safetensors is not the one in its manifest"),
        (remove, "outline.pt is missing"),
        (remove_manifest, "manifest.json is missing"),
        (garble_manifest, "manifest.json cannot be read"),
        (list_nothing, "manifest.json does not list outline.pt"),
        (nest_manifest, "manifest.json cannot be read"),
        (replace_manifest_by_a_folder, "manifest.json must be a file"),
        (replace_manifest_by_a_pipe, "manifest.json must be a file"),
        (link_manifest_to_itself, "manifest.json cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    older, newer = (checkpoint.save(tmp_path, step, example(), ALONE) for step in (9, 10))
    damage(newer)
    reports: list[str] = []
    assert newest(tmp_path, reports.append) == older
    (report,) = reports
    assert report.startswith(f"checkpoint {newer} is damaged and is not used: ")
    assert reason in report
    assert "\n" not in report
    damage(older)
    assert newest(tmp_path, reports.append) is None
    assert len(reports) == 3


def test_a_damaged_checkpoint_is_replaced_by_the_next_of_its_step(tmp_path: Path) -> None:
    flip_a_bit(checkpoint.save(tmp_path, 3, example(), ALONE))
    path = checkpoint.save(tmp_path, 3, {"a": torch.ones(2)}, ALONE)
    assert newest(tmp_path, unreported) == path
    assert same(load(path), {"a": torch.ones(2)})


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "missing", unreported) is None
    (tmp_path / ".step-00000005.partial").mkdir()
    assert newest(tmp_path, unreported) is None


def test_other_things_beside_checkpoints_are_passed_over(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 5, {}, ALONE)
    (tmp_path / "step-00000006.bak").mkdir()
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-00000008").touch()
    assert newest(tmp_path, unreported) == path
    checkpoint.prune(tmp_path, keep_last=1, keep_every=None)
    assert len(list(tmp_path.iterdir())) == 4


def test_checkpoints_in_what_is_no_folder_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(RecordError, match=r"^cannot read .*/checkpoints: Not a directory; "):
        newest(tmp_path / "checkpoints", unreported)


def test_a_write_that_fails_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.save(tmp_path, 1, example(), ALONE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, example(), ALONE)
    monkeypatch.undo()
    assert newest(tmp_path, unreported) == before
    checkpoint.save(tmp_path, 2, example(), ALONE)
    assert [checkpoint.step_of(path) for path in checkpoint.finished(tmp_path)] == [1, 2]


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", lambda *paths: (events.append("rename"), rename(*paths))[1])
    path = checkpoint.save(tmp_path, 1, example(), ALONE)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    written = {file.name for file in path.iterdir()} - {"manifest.json"}
    assert written | {".manifest.json.partial", ".step-00000001.partial"} <= set(before)
    assert after == [tmp_path.name]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [7]), (3, None, [5, 6, 7]), (1, 3, [3, 6, 7]), (9, None, [1, 2, 3, 4, 5, 6, 7])],
)
def test_old_checkpoints_go(tmp_path: Path, keep_last: int, keep_every: int | None, kept: list[int]) -> None:
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, {}, ALONE)
    (tmp_path / ".step-00000004.partial").mkdir()
    checkpoint.prune(tmp_path, keep_last=keep_last, keep_every=keep_every)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in kept]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["outline.pt", "random-00000.pt"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, name: str) -> None:
    path = checkpoint.save(tmp_path / "checkpoints", 1, example(), ALONE)
    trap = tmp_path / "executed"
    content = io.BytesIO()
    torch.save(Malicious(trap), content)
    (path / name).write_bytes(content.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        load(path)
    assert not trap.exists()
    torch.load(path / name, weights_only=False)  # it would have been
    assert trap.exists()
