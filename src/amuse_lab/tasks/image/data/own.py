"""Images of the user's own: a folder for each class, images of any size, any number of classes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset, holds_something
from amuse_lab.tasks.image.data.decoding import Decoder, Job, available_workers, decode
from amuse_lab.tasks.image.data.files import write_folder
from amuse_lab.tasks.image.data.folders import LISTING, Folders
from amuse_lab.tasks.image.source import Source

ENDINGS = (".jpeg", ".jpg", ".png")
VERSION = 1
_KIND = "own"
_TEST = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class OwnImages:
    """Which images there are.

    Attributes:
        root: The folder they lie in.
        size: Height and width that models see, in pixels.
        classes: Names of the classes, in the order of their numbers.
        train: Paths below the root and numbers of the classes, for training and validation.
        test: The same for the test set; empty if there is none.
        skipped: Files that cannot be read and were passed over.
    """

    root: Path
    size: int
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    skipped: int = 0

    @classmethod
    def find(cls, root: Path, size: int, *, skip_bad: bool) -> Self:
        """List the images of a folder, each of which is read once.

        Args:
            root: With a folder for each class; or with `train` and perhaps `test` or `val`, which hold these.
            size: Height and width that models see, in pixels.
            skip_bad: Whether files that cannot be read are passed over and counted.

        Raises:
            DataError: If it is laid out otherwise, or an image cannot be read.
        """
        try:
            divided = (root / "train").is_dir()
            training = root / "train" if divided else root
            classes = tuple(sorted(path.name for path in _folders(training)))
            test = next((root / name for name in _TEST if divided and (root / name).is_dir()), None)
            parts = [list(_images(root, part, classes)) for part in (training, test) if part is not None]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        if len(classes) < 2:
            raise DataError(
                f"{training} must hold two or more folders, one for each class, has {len(classes)}"
            )
        bad = _unreadable([root / path for part in parts for path, _ in part], size)
        if bad and not skip_bad:
            raise DataError(f"{next(iter(bad.values()))}; --skip-bad passes over such files")
        kept = [tuple((path, label) for path, label in part if root / path not in bad) for part in parts]
        found = cls(root.absolute(), size, classes, kept[0], kept[1] if test else (), len(bad))
        for number, name in enumerate(classes):
            if not any(label == number for _, label in found.train):
                raise DataError(f"{training / name} must hold images that end with {', '.join(ENDINGS)}")
        if found.validation >= len(found.train):
            raise DataError(f"{training} must hold more images than the {len(found.train)} that there are")
        return found

    @property
    def validation(self) -> int:
        """Images that are held out of training: a tenth, and one for each class where there are enough."""
        count = len(self.train)
        return max(1, count // 10, min(len(self.classes), count // 2))

    def to_json(self) -> bytes:
        """Return what `read` reads."""
        content: dict[str, Any] = {"version": VERSION, "kind": _KIND} | vars(self)
        return (json.dumps(content | {"root": str(self.root)}) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the listing in a prepared folder; None where there is none.

        Raises:
            DataError: If it is damaged, or that of another kind of data set.
        """
        path = folder / LISTING
        try:
            content = json.loads(path.read_bytes())
            if content.pop("kind", None) != _KIND or content.pop("version") != VERSION:
                raise DataError(f"{path} is not a list of own images of version {VERSION}")
            content["root"] = Path(content["root"])
            for name in ("train", "test"):
                content[name] = tuple((str(file), int(label)) for file, label in content[name])
            content["classes"] = tuple(map(str, content["classes"]))
            found = cls(**content)
            labels = {label for _, label in (*found.train, *found.test)}
            if not labels <= set(range(len(found.classes))) or not 1 <= found.validation < len(found.train):
                raise ValueError("labels must be numbers of classes")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: remove {folder} and prepare it again") from error
        return found


@dataclass(frozen=True, kw_only=True)
class OwnSet(Dataset):
    """Images of the user's own, which stay where they are.

    Attributes:
        images: Listing of the images and their classes.
    """

    images: OwnImages

    @classmethod
    def of(cls, name: str, images: OwnImages) -> Self:
        """Return the data set of a listing, normalized as ImageNet is."""
        return cls(
            name=name,
            description=f"{len(images.train):,} images of your own in {len(images.classes)} classes",
            shape=(3, images.size, images.size),
            classes=len(images.classes),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            validation=images.validation,
            origin="your own",
            label_names=images.classes,
            images=images,
        )

    def load(
        self,
        folder: Path | None,  # noqa: ARG002 - the listing has been read
        *,
        device: torch.device,  # noqa: ARG002 - batches are sent there
        workers: int,
    ) -> tuple[Source, Source | None]:
        """Open the images."""
        decoder = Decoder(self.shape[1], workers)
        training, test = (
            Folders([str(self.images.root / path) for path, _ in part], _labels_of(part), decoder)
            for part in (self.images.train, self.images.test)
        )
        return training, test if self.images.test else None

    def check(self, folder: Path | None) -> None:  # noqa: ARG002 - as above
        """Look for the folder that the images are in."""
        if not self.images.root.is_dir():
            raise DataError(f"the images of {self.name} must be in {self.images.root}, which is not there")

    def prepare(self, path: Path, folder: Path) -> None:  # noqa: ARG002 - as above
        """Write the listing, or compare it with the one that is there."""
        if not holds_something(folder):
            write_folder(folder, {LISTING: self.images.to_json()})
        elif OwnImages.read(folder) != self.images:
            raise DataError(f"{folder} lists other images: remove it or choose another --out")

    def expects(self) -> str:
        """Return the layout."""
        return "a folder with a folder of images for each class"


def holds_images(path: Path) -> bool:
    """Return True if the first file below a folder that could be an image or text is an image.

    Args:
        path: What the user has named; anything but a folder holds none.
    """
    if not path.is_dir():
        return False
    for _, folders, files in os.walk(path):
        folders.sort()
        if any(file.lower().endswith(ENDINGS) for file in files):
            return True
    return False


def _folders(root: Path) -> Iterator[Path]:
    with os.scandir(root) as entries:
        yield from (
            Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _images(root: Path, part: Path, classes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Paths below the root and numbers of classes of what is in a part, in order."""
    numbers = {name: number for number, name in enumerate(classes)}
    for folder in sorted(_folders(part)):
        if folder.name not in numbers:
            raise DataError(f"{part} must hold the classes of the training images, but has {folder.name}")
        for path in sorted(folder.rglob("*")):
            if path.name.lower().endswith(ENDINGS) and path.is_file():
                yield path.relative_to(root).as_posix(), numbers[folder.name]


def _unreadable(paths: Sequence[Path], size: int) -> Mapping[Path, DataError]:
    """The files that cannot be decoded, each with the reason."""

    def reason(path: Path) -> DataError | None:
        try:
            decode(Job(str(path), None), size)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(available_workers()) as pool:
        found = zip(paths, pool.map(reason, paths), strict=True)
        return {path: error for path, error in found if error is not None}


def _labels_of(part: Sequence[tuple[str, int]]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the numbers of the classes of a part, shape (images,)."""
    return np.array([label for _, label in part], np.int64)
