"""Images as files in folders, one for each class: ImageNet as people have it, and others laid out like it."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.decoding import Decoder, Job
from amuse_lab.tasks.image.order import Visits

LISTING = "images.json"
PARTS = ("train", "val")
VERSION = 1

_ENDINGS = (".jpeg", ".jpg")


@dataclass(frozen=True)
class Listing:
    """Which images there are.

    Attributes:
        root: The folder with `train` and `val`, each with a folder for every class.
        parts: The names of the files of each class, by part and class, all in order.
    """

    root: Path
    parts: Mapping[str, Mapping[str, Sequence[str]]]

    @classmethod
    def find(cls, root: Path, classes: int, images: tuple[int, int] | None) -> Self:
        """List the images of a folder.

        Args:
            root: Folder with `train` and `val`, each with a folder for every class.
            classes: Number of classes that there must be.
            images: Numbers of images that `train` and `val` must have; None if they are not known.

        Raises:
            DataError: If the folder cannot be read, or has other classes or another number of images.
        """
        parts: dict[str, dict[str, list[str]]] = {}
        for part in PARTS:
            try:
                with os.scandir(root / part) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_dir())
                parts[part] = {name: _images_of(root / part / name) for name in names}
            except OSError as error:
                raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        listing = cls(root.absolute(), parts)
        listing._check(classes, images)
        return listing

    def _check(self, classes: int, images: tuple[int, int] | None) -> None:
        for number, part in enumerate(PARTS):
            folder, held = self.root / part, self.parts[part]
            if len(held) != classes:
                raise DataError(f"{folder} must hold {classes} folders, one a class, has {len(held)}")
            if held.keys() != self.parts["train"].keys():
                raise DataError(f"{folder} must hold the same classes as {self.root / 'train'}")
            for name, files in held.items():
                if not files:
                    raise DataError(f"{folder / name} must hold images that end with {', '.join(_ENDINGS)}")
            count = self.count(part)
            if images is not None and count != images[number]:
                raise DataError(f"{folder} must hold {images[number]:,} images, has {count:,}")

    def to_json(self) -> bytes:
        """Return what `read` reads."""
        content = {"version": VERSION, "root": str(self.root), "parts": self.parts}
        return (json.dumps(content) + "\n").encode()

    @classmethod
    def read(cls, folder: Path, classes: int, images: tuple[int, int] | None, hint: str) -> Self:
        """Read the listing in a prepared folder.

        Args:
            folder: Folder that the listing is in.
            classes: Number of classes that there must be.
            images: Number of images that each part must have, where that is known.
            hint: What to do if it is missing; ends the message.

        Raises:
            DataError: If it is missing or damaged, or that of another data set.
        """
        path = folder / LISTING
        try:
            content = json.loads(path.read_bytes())
            if content["version"] != VERSION:
                raise DataError(f"{path} must have version {VERSION}, got {content['version']!r}")
            listing = cls(Path(content["root"]), {part: dict(content["parts"][part]) for part in PARTS})
            for held in listing.parts.values():
                for files in held.values():
                    if not (isinstance(files, list) and all(isinstance(file, str) for file in files)):
                        raise TypeError("the files of a class must be a list of their names")
            listing._check(classes, images)
            return listing
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {hint}") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: remove {folder} and prepare it again") from error

    def count(self, part: str) -> int:
        """Return how many images a part has."""
        return sum(map(len, self.parts[part].values()))

    def source(self, part: str, decoder: Decoder) -> "Folders":
        """Open a part."""
        held = self.parts[part]
        paths = [str(self.root / part / name / file) for name, files in held.items() for file in files]
        labels = np.repeat(np.arange(len(held)), [len(files) for files in held.values()])
        return Folders(paths, labels, decoder)


def _images_of(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(_ENDINGS))


class Folders:
    """Images that are decoded when they are asked for: a random part of each for training, else the middle.

    Args:
        paths: Paths of the image files.
        labels: Numbers of their classes, shape (images,).
        decoder: Processes that decode the images.
    """

    def __init__(self, paths: Sequence[str], labels: NDArray[np.int64], decoder: Decoder) -> None:
        self.labels = labels
        self._paths = paths
        self._decoder = decoder

    def augmented(self, visits: Visits, upcoming: Iterable[Visits] = ()) -> Tensor:
        """Return images as training sees them."""
        return self._decoded(self._visited(visits), (self._visited(each) for each in upcoming))

    def plain(self, images: NDArray[np.int64], upcoming: Iterable[NDArray[np.int64]] = ()) -> Tensor:
        """Return images as evaluations see them."""
        return self._decoded(self._still(images), (self._still(each) for each in upcoming))

    def _still(self, images: NDArray[np.int64]) -> list[Job]:
        return [Job(self._paths[number], None) for number in images]

    def _visited(self, visits: Visits) -> list[Job]:
        pairs = zip(visits.epochs.tolist(), visits.images.tolist(), strict=True)
        return [Job(self._paths[number], (visits.stream, epoch, number)) for epoch, number in pairs]

    def _decoded(self, jobs: Sequence[Job], upcoming: Iterable[Sequence[Job]]) -> Tensor:
        return torch.from_numpy(self._decoder(jobs, upcoming)).permute(0, 3, 1, 2)
