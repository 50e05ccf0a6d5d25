import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data import files
from amuse_lab.tasks.image.data.files import Original, read_archive, read_folder, write_folder
from tests.amuse_lab.tasks.image.originals import archive_of, original

CONTENTS = {"one": b"first", "two": b"second"}
ORIGINALS = tuple(original(name, content) for name, content in CONTENTS.items())


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, Original]:
    return packed(tmp_path, archive_of(CONTENTS))


def packed(folder: Path, content: bytes) -> tuple[Path, Original]:
    path = folder / "published.tar.gz"
    path.write_bytes(content)
    return path, original(path.name, content)


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                file.addfile(entry, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def test_files_of_a_folder_also_compressed(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"first")
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"second"))
    assert read_folder(tmp_path, ORIGINALS, "") == CONTENTS


def test_missing_files_are_named_with_their_checksum(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        expected = rf"^{folder}/one \(md5 {ORIGINALS[0].checksum}\) is missing: fetch it$"
        with pytest.raises(DataError, match=expected):
            read_folder(folder, ORIGINALS, "fetch it")


def test_altered_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"frist")
    with pytest.raises(DataError, match=r"one is not the published one, or is damaged: md5 must be .*, got "):
        read_folder(tmp_path, ORIGINALS, "")
    sha = Original("one", "0" * 64)
    with pytest.raises(DataError, match="sha256 must be 0000"):
        read_folder(tmp_path, [sha], "")


@pytest.mark.parametrize(
    "damage", [b"not gzip", gzip.compress(b"first")[:-9], b""], ids=["other", "cut", "empty"]
)
def test_damaged_compression_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "one.gz").write_bytes(damage)
    with pytest.raises(DataError, match=r"one\.gz") as caught:
        read_folder(tmp_path, ORIGINALS, "")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match=r"/one must be a file$"):
        read_folder(tmp_path, ORIGINALS, "")
    (tmp_path / "one").rmdir()
    os.mkfifo(tmp_path / "one")
    with pytest.raises(DataError, match=r"/one must be a file$"):
        read_folder(tmp_path, ORIGINALS, "")
    with pytest.raises(DataError, match=r"/one must be a file$"):
        read_archive(tmp_path / "one", ORIGINALS[0], ORIGINALS)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_files_that_would_fill_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(files, "_LARGEST", 5)
    for content, fits in ((b"first", True), (b"first!", False)):
        (tmp_path / f"one{ending}").write_bytes(gzip.compress(content) if ending else content)
        if fits:
            assert read_folder(tmp_path, ORIGINALS[:1], "") == {"one": content}
        else:
            with pytest.raises(DataError, match=r"/one.* must have at most 5 bytes"):
                read_folder(tmp_path, ORIGINALS[:1], "")


def test_members_are_read_up_to_a_limit(
    archive: tuple[Path, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGEST", 5)
    with pytest.raises(DataError, match=r"two in .* is not the published two, or is damaged"):
        read_archive(*archive, ORIGINALS)


def test_an_archive_is_read_in_the_order_that_is_wanted(archive: tuple[Path, Original]) -> None:
    contents = read_archive(*archive, tuple(reversed(ORIGINALS)))
    assert list(contents.items()) == [("two", b"second"), ("one", b"first")]


def test_another_archive_is_refused_before_it_is_opened(
    archive: tuple[Path, Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    path, known = archive
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"is not the published published.tar.gz, or is damaged: md5 must be"):
        read_archive(path, known, ORIGINALS)


@pytest.mark.parametrize(
    "content",
    [
        tar(("../../one", b"first"), ("/two", b"secund")),
        tar(("one", b"first"), link("two", "/etc/passwd", tarfile.SYMTYPE)),
        tar(("one", b"first"), link("two", "one", tarfile.LNKTYPE)),
        tar(("one", b"first"), link("two", "", tarfile.CHRTYPE)),
        tar(("one", b"first"), ("two/", b"")),
        tar(("one", b"first")),
        tar(("two", b"second")),
        archive_of(CONTENTS)[:60],
        b"no archive",
        b"",
    ],
    ids=[
        "upwards",
        "soft",
        "hard",
        "device",
        "folder",
        "first alone",
        "second alone",
        "cut",
        "other",
        "empty",
    ],
)
def test_hostile_archives_are_refused_and_nothing_is_written(tmp_path: Path, content: bytes) -> None:
    """Even if their checksum were right."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path, known = packed(inside, content)
    with pytest.raises(DataError) as caught:
        read_archive(path, known, ORIGINALS)
    assert "\n" not in str(caught.value)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_members_outside_of_the_archive_are_only_read(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path, known = packed(inside, tar(("../../one", b"first"), ("/two", b"second")))
    assert read_archive(path, known, ORIGINALS) == CONTENTS
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_folder_appears_with_everything_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "data"
    synced = []

    def fail_at_the_second(path: Path) -> None:
        synced.append(path)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("amuse_lab.files.sync", fail_at_the_second)
        with pytest.raises(DataError, match=r"cannot write .*/new/data: No space left on device"):
            write_folder(folder, CONTENTS)
    assert list(folder.parent.iterdir()) == []
    (folder.parent / ".data.partial").mkdir()
    (folder.parent / ".data.partial" / "one").write_bytes(b"fir")  # left by one that was killed
    write_folder(folder, CONTENTS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("keep")
    with pytest.raises(DataError, match=r"cannot write .*; remove what is there or choose another --out"):
        write_folder(tmp_path / "data", CONTENTS)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine"]
