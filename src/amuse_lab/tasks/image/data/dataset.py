"""What a data set of the image task is: a few files in memory, or photographs in folders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from amuse_lab.errors import DataError
from amuse_lab.files import data_root
from amuse_lab.tasks.image.data.decoding import Decoder
from amuse_lab.tasks.image.data.files import Original, check_folder, read_archive, read_folder, write_folder
from amuse_lab.tasks.image.data.folders import LISTING, PARTS, Listing
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.source import InMemory, Source

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Contents = Mapping[str, bytes]
"""Files by name."""


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A data set.

    Attributes:
        name: Name of the data set, as `--task.data` takes it.
        description: One-line description for `amuse-lab list`.
        shape: Channels, height and width of its images as models see them.
        classes: How many classes its labels tell apart: they are 0 to classes - 1.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        validation: Number of training images that are held out for validation.
        origin: Where to get the files, in words.
        label_names: Names of the classes in the order of their numbers, where they are known.
    """

    name: str
    description: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: int
    origin: str
    label_names: tuple[str, ...] | None = None

    @abstractmethod
    def load(
        self, folder: Path | None, *, device: torch.device, workers: int
    ) -> tuple[Source, Source | None]:
        """Open the training set and the test set, which some do not have.

        Args:
            folder: Where it was prepared; None means the folder NAME in the data root.
            device: Where images are kept, if they fit.
            workers: Processes that decode, if they do not.

        Raises:
            DataError: If files are missing or not what they should be.
        """

    @abstractmethod
    def check(self, folder: Path | None) -> None:
        """Check that the files are there, without reading them.

        Args:
            folder: Folder it was prepared in, as for `load`.

        Raises:
            DataError: If one is missing; the message has the command that mends it.
        """

    @abstractmethod
    def prepare(self, path: Path, folder: Path) -> None:
        """Check the user's files and write them to where `load` finds them, unless they are there already.

        Args:
            path: Archive or folder that the user has.
            folder: If it does not exist or is empty, it appears complete or not at all.

        Raises:
            DataError: If the files are not the published ones; nothing is written then.
        """

    @abstractmethod
    def expects(self) -> str:
        """Return what `prepare` takes, in words."""

    def folder(self, chosen: Path | None) -> Path:
        """Return where it is, or should be."""
        return data_root() / self.name if chosen is None else chosen


@dataclass(frozen=True, kw_only=True)
class FileSet(Dataset):
    """A data set that fits into memory, in a few files.

    Attributes:
        originals: Files as their makers publish them.
        archive: Archive that the files are published in; None if they are published one by one.
        read: Makes training set and test set of the files' contents.
        padding: Largest random shift of training images, in pixels.
        flip: Whether half of the training images, chosen at random, are flipped left to right.
        bundled: Finds the folder in which a package carries the files; None if no package does.
    """

    originals: tuple[Original, ...]
    archive: Original | None = None
    read: Callable[[Contents], tuple[Labelled, Labelled | None]]
    padding: int
    flip: bool
    bundled: Callable[[], Path] | None = None

    def load(
        self,
        folder: Path | None,
        *,
        device: torch.device,
        workers: int,  # noqa: ARG002 - nothing to decode
    ) -> tuple[Source, Source | None]:
        """Read and check the files."""
        training, test = self.read(read_folder(self._place(folder), self.originals, self._hint()))

        def kept(part: Labelled) -> InMemory:
            return InMemory(part, padding=self.padding, flip=self.flip, device=device)

        return kept(training), None if test is None else kept(test)

    def _place(self, folder: Path | None) -> Path:
        return self.bundled() if self.bundled and folder is None else self.folder(folder)

    def check(self, folder: Path | None) -> None:
        """Look for every file."""
        check_folder(self._place(folder), self.originals, self._hint())

    def expects(self) -> str:
        """Return which files, with their checksums."""
        if self.archive is not None:
            return f"{self.archive}, or a folder with the files in it"
        return f"a folder with {', '.join(map(str, self.originals))}"

    def _hint(self) -> str:
        if self.bundled is not None:
            return self.origin
        wanted = self.archive or "the files"
        given = "FOLDER" if self.archive is None else self.archive.name
        return f"fetch {wanted} from {self.origin}, then: amuse-lab prepare {self.name} --from {given}"

    def prepare(self, path: Path, folder: Path) -> None:
        """Copy the files, out of their archive or a folder."""
        if holds_something(folder):
            return
        if self.archive is not None and not path.is_dir():
            contents = read_archive(path, self.archive, self.originals)
        else:
            contents = read_folder(path, self.originals, f"--from must be {self.expects()}")
        self.read(contents)
        write_folder(folder, contents)


@dataclass(frozen=True, kw_only=True)
class FolderSet(Dataset):
    """A data set of JPEG files in a folder for each class, which stays where it is.

    Attributes:
        images: How many there are for training and for testing, where that is known.
    """

    images: tuple[int, int] | None

    def load(
        self,
        folder: Path | None,
        *,
        device: torch.device,  # noqa: ARG002 - batches are sent there
        workers: int,
    ) -> tuple[Source, Source]:
        """Read the listing."""
        listing = self._listing(self.folder(folder))
        decoder = Decoder(self.shape[1], workers)
        training, test = (listing.source(part, decoder) for part in PARTS)
        return training, test

    def check(self, folder: Path | None) -> None:
        """Look for the listing."""
        self._listing(self.folder(folder))

    def expects(self) -> str:
        """Return the layout."""
        return f"a folder with {' and '.join(PARTS)}, each with {self.classes:,} folders of JPEG files"

    def prepare(self, path: Path, folder: Path) -> None:
        """List the images."""
        found = Listing.find(path, self.classes, self.images)
        if found.count("train") <= self.validation:
            raise DataError(
                f"{path / 'train'} must hold more than the {self.validation:,} images that are held out for "
                f"validation, has {found.count('train'):,}"
            )
        if not holds_something(folder):
            write_folder(folder, {LISTING: found.to_json()})
        elif self._listing(folder) != found:
            raise DataError(
                f"{folder} must list the images of {path}, but lists others: remove it or choose "
                "another --out"
            )

    def _listing(self, folder: Path) -> Listing:
        hint = f"{self.origin}, then: amuse-lab prepare {self.name} --from FOLDER"
        return Listing.read(folder, self.classes, self.images, hint)


def holds_something(folder: Path) -> bool:
    """Return True if a folder is there and not empty."""
    return folder.exists() and any(folder.iterdir())
