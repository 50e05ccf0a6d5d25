"""`amuse-lab prepare` for images: the options and the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amuse_lab.arguments import Parser
from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.sets import DATA, DATASETS, FileSet

PREPARED: Mapping[str, str] = {
    name: dataset.description
    for name, dataset in DATASETS.items()
    if not (isinstance(dataset, FileSet) and dataset.on_board)
}
"""Descriptions of the data sets that have to be prepared; the others come with a package."""


@dataclass(frozen=True)
class ImageJob:
    """A data set to prepare.

    Attributes:
        name: Which.
        path: What there is of it: the published archive, or a folder with the files.
        folder: Where to put it.
    """

    name: str
    path: Path
    folder: Path

    def run(self) -> None:
        """Prepare it unless it is there already; check it in both cases.

        Raises:
            DataError: If the files are not the published ones, or the folder cannot be written.
        """
        dataset = DATASETS[self.name]
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


def parse_images(name: str, arguments: Sequence[str]) -> ImageJob:
    """Read the options.

    Args:
        name: Of the data set; names the folder.
        arguments: What follows it.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    dataset = DATASETS[name]
    parser = Parser(
        prog=f"amuse-lab prepare {name}",
        description=f"{dataset.description}. Where to get it: {dataset.origin}.",
        allow_abbrev=False,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--from", dest="path", type=Path, required=True, metavar="PATH", help=dataset.expects())
    add("--out", type=Path, default=DATA / name, metavar="FOLDER", help=f"{DATA / name} by default")
    given = parser.parse(arguments)
    return ImageJob(name, given.path, given.out)
