"""`amuse-lab prepare` for images: the options and the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from amuse_lab.arguments import parse
from amuse_lab.errors import DataError, require
from amuse_lab.files import data_root
from amuse_lab.tasks.image.data.dataset import Dataset, FileSet
from amuse_lab.tasks.image.data.own import OwnImages, OwnSet
from amuse_lab.tasks.image.data.sets import DATASETS

PREPARED: Mapping[str, str] = {
    name: dataset.description
    for name, dataset in DATASETS.items()
    if not (isinstance(dataset, FileSet) and dataset.bundled)
}
"""Descriptions of the data sets that have to be prepared; the others come with a package."""


@dataclass(frozen=True)
class ImageJob:
    """A data set to prepare.

    Attributes:
        dataset: Data set that is prepared.
        path: What it is prepared from: the published archive, or a folder with the files.
        folder: Folder that the prepared data set is written to.
    """

    dataset: Dataset
    path: Path
    folder: Path

    def run(self) -> None:
        """Prepare it unless it is there already; check it in both cases.

        Raises:
            DataError: If the files are not the published ones, or the folder cannot be written.
        """
        dataset = self.dataset
        try:
            there = self.folder.exists()
            dataset.prepare(self.path, self.folder)
        except OSError as error:  # of the paths themselves
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        try:
            parts = dataset.load(self.folder, device=torch.device("cpu"), workers=1)
        except DataError as error:
            if there:
                raise DataError(f"{error}; remove {self.folder} or choose another --out") from error
            raise
        print(f"{self.folder}: complete")
        for part, source in zip(("train", "test"), parts, strict=True):
            if source is not None:
                print(f"  {part}: {len(source.labels):,} images")
        if isinstance(dataset, OwnSet):
            self._describe(dataset)

    def _describe(self, dataset: OwnSet) -> None:
        """Print what was found of own images, and the command that trains on them."""
        if dataset.images.skipped:
            print(f"  skipped: {dataset.images.skipped:,} files that cannot be read")
        print(f"  {dataset.classes} classes: {', '.join(dataset.images.classes[:8])}")
        at_home = self.folder == data_root() / dataset.name
        place = "" if at_home else f" --task.folder {self.folder}"
        print(f"train on it: amuse-lab train resnet20 --task.data {dataset.name}{place}")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where images come from and where they go.

    Attributes:
        path: Archive or folder with the images, as described above.
        out: The folder to write; by default the one named NAME in the data root.
    """

    path: Annotated[Path, tyro.conf.arg(name="from")]
    out: Path | None = None


def parse_images(name: str, arguments: Sequence[str]) -> ImageJob:
    """Read the options of a published data set.

    Args:
        name: Name of the data set, and of the folder.
        arguments: Words of the command line after the name.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    dataset = DATASETS[name]
    given = parse(
        ImageOptions,
        arguments,
        prog=f"amuse-lab prepare {name}",
        description=f"{dataset.description}. Where to get it: {dataset.origin}. "
        f"--from must be {dataset.expects()}.",
    )
    return ImageJob(dataset, given.path, given.out or data_root() / name)


@dataclass(frozen=True, kw_only=True)
class OwnImageOptions(ImageOptions):
    """How images of the user's own are taken.

    Attributes:
        size: Height and width that models see, in pixels; images of any size and shape are cropped to it.
        skip_bad: Pass over files that cannot be read, and count them.
    """

    size: int = 64
    skip_bad: bool = False


def parse_own_images(name: str, arguments: Sequence[str]) -> ImageJob:
    """Read the options of images of the user's own; arguments and errors as for `parse_images`."""
    given = parse(
        OwnImageOptions,
        arguments,
        prog=f"amuse-lab prepare {name}",
        description="Lists the images (JPEG, PNG) of a folder that holds a folder for each class, or `train` "
        "and perhaps `test` with such folders. They stay where they are.",
    )
    require(given.size >= 8, "--size", "at least 8 pixels", given.size)
    require(name not in DATASETS, "the name", "another one than that of a published data set", name)
    images = OwnImages.find(given.path, given.size, skip_bad=given.skip_bad)
    return ImageJob(OwnSet.of(name, images), given.path, given.out or data_root() / name)
