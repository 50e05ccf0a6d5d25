import os
import threading
import time
from pathlib import Path

import pytest

from amuse_lab.errors import DataError
from amuse_lab.files import (
    check_is_file,
    data_folder,
    data_root,
    data_root_at,
    locked,
    new_folder,
    replacing,
)


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


def test_a_new_folder_appears_with_everything_or_not_at_all(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "one").write_text("1")
            raise OSError("disk full")

    (tmp_path / ".out.partial").mkdir()  # of a process that was killed
    (tmp_path / ".out.partial" / "rest").touch()
    with pytest.raises(OSError, match="disk full"):
        fill()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as partial:
        assert list(partial.iterdir()) == []
        (partial / "one").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "one").read_text() == "1"


def test_one_at_a_time_is_inside_and_nothing_is_left(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        with locked(tmp_path / "a" / "b"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_data_lies_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMUSE_LAB_DATA", raising=False)
    assert (data_root(), data_folder("notes")) == (Path("data"), Path("data/notes"))
    assert data_folder("./notes") == Path("notes")
    with data_root_at("/elsewhere"):
        assert data_folder("notes") == Path("/elsewhere/notes")
        with data_root_at(None):
            assert data_root() == Path("/elsewhere")
    assert "AMUSE_LAB_DATA" not in os.environ
    monkeypatch.setenv("AMUSE_LAB_DATA", "/mine")
    with data_root_at("/elsewhere"):
        assert data_root() == Path("/elsewhere")
    assert data_root() == Path("/mine")


def test_what_is_no_file_is_refused_and_what_is_missing_is_not(tmp_path: Path) -> None:
    check_is_file(tmp_path / "missing")
    with pytest.raises(DataError, match=f"^{tmp_path} must be a file$"):
        check_is_file(tmp_path)
