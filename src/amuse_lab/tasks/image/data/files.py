"""Files as their makers publish them, known by their checksums."""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from amuse_lab.errors import DataError
from amuse_lab.files import check_is_file, new_folder

_LARGEST = 2**30  # bytes of a file; more than any has, too little to fill a memory
_KINDS = {32: "md5", 64: "sha256"}


@dataclass(frozen=True)
class Original:
    """A published file.

    Attributes:
        name: As published; without the ending .gz where the checksum is that of the decompressed content.
        checksum: MD5 or SHA-256, in hexadecimal.
    """

    name: str
    checksum: str

    @property
    def kind(self) -> str:
        """Which checksum it is."""
        return _KINDS[len(self.checksum)]

    def __str__(self) -> str:
        return f"{self.name} ({self.kind} {self.checksum})"

    def check(self, found: str, place: str) -> None:
        """Compare a checksum with the published one.

        Args:
            found: Checksum of the user's file.
            place: Name of that file in the error message.

        Raises:
            DataError: If it is another one.
        """
        if found != self.checksum:
            raise DataError(
                f"{place} is not the published {self.name}, or is damaged: {self.kind} must be "
                f"{self.checksum}, got {found}"
            )

    def check_content(self, content: bytes, place: str) -> bytes:
        """Return the content if it is the published one.

        Raises:
            DataError: If it is not.
        """
        self.check(hashlib.new(self.kind, content, usedforsecurity=False).hexdigest(), place)
        return content


def check_folder(folder: Path, originals: Sequence[Original], hint: str) -> None:
    """Check that published files are in a folder, without reading them.

    Args:
        folder: Folder that the files should be in.
        originals: Which; each may be compressed, with the ending .gz.
        hint: What to do about a missing one; ends the message.

    Raises:
        DataError: If one is missing.
    """
    for original in originals:
        try:
            there = (folder / original.name).exists() or (folder / f"{original.name}.gz").exists()
        except OSError as error:
            raise DataError(f"cannot read {folder}: {error.strerror}") from error
        if not there:
            raise DataError(f"{folder.absolute() / str(original)} is missing: {hint}")


def read_folder(folder: Path, originals: Sequence[Original], hint: str) -> dict[str, bytes]:
    """Read published files from a folder; each may be compressed, with the ending .gz.

    Args:
        folder: Folder that the files are in.
        originals: Names and checksums of the published files to read.
        hint: What to do about a missing one; ends the message.

    Returns:
        Their contents by name.

    Raises:
        DataError: If one is missing, cannot be read or is not the published one.
    """
    contents = {}
    for original in originals:
        path = folder / original.name
        compressed = folder / f"{original.name}.gz"
        try:
            if not path.exists() and compressed.exists():
                path = compressed
            content = _read(path, compressed=path is compressed)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{folder / str(original)} is missing: {hint}") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        contents[original.name] = original.check_content(content, str(path))
    return contents


def _read(path: Path, *, compressed: bool) -> bytes:
    """Read a file, of which nobody knows yet what it is."""
    check_is_file(path)
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if len(content) > _LARGEST:
        raise DataError(f"{path} must have at most {_LARGEST:,} bytes")
    return content


def read_archive(path: Path, archive: Original, originals: Sequence[Original]) -> dict[str, bytes]:
    """Read published files out of a published archive, wherever in it they are. Nothing is unpacked.

    Args:
        path: Path of the archive, a compressed tar file.
        archive: The published archive, whose checksum the file must have.
        originals: Names and checksums of the published files to read out of it.

    Returns:
        Their contents by name, in the order of `originals`.

    Raises:
        DataError: If the archive, or a file in it, is not the published one.
    """
    wanted = {original.name: original for original in originals}
    contents: dict[str, bytes] = {}
    try:
        check_is_file(path)
        with path.open("rb") as file:
            archive.check(hashlib.file_digest(file, archive.kind).hexdigest(), str(path))
        with tarfile.open(path, "r:gz") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                content = members.extractfile(member) if member.isreg() and name in wanted else None
                if content is not None:
                    found = content.read(_LARGEST)
                    contents[name] = wanted[name].check_content(found, f"{member.name} in {path}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    for original in originals:
        if original.name not in contents:
            raise DataError(f"{path} must hold {original}, which it does not")
    return {name: contents[name] for name in wanted}


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a new folder, which appears with all of them or not at all.

    Args:
        folder: Does not exist, or is empty; what a call that was killed left beside it is removed.
        contents: Content of each file by its name.

    Raises:
        DataError: If it cannot be written, or something else is there.
    """
    try:
        with new_folder(folder) as partial:
            for name, content in contents.items():
                (partial / name).write_bytes(content)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror}; remove what is there or choose another --out"
        ) from error
