from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.tasks.image.data.dataset import Dataset, FileSet, FolderSet
from amuse_lab.tasks.image.data.sets import DATASETS
from tests.amuse_lab.tasks.image import originals
from tests.amuse_lab.tasks.image.originals import cycling, original, random_images


def _small_files() -> dict[str, dict[str, bytes]]:
    """The files of every data set that has some: 60 images to train on, 20 to test."""
    colour, grey = (random_images(80, 32, 32, 3), random_images(80, 28, 28, 1))
    ten, hundred = cycling(80, 10), cycling(80, 100)
    idx = {
        "train-images-idx3-ubyte": originals.idx_images(grey[:60]),
        "train-labels-idx1-ubyte": originals.idx_labels(ten[:60]),
        "t10k-images-idx3-ubyte": originals.idx_images(grey[60:]),
        "t10k-labels-idx1-ubyte": originals.idx_labels(ten[60:]),
    }
    cifar10 = {
        f"data_batch_{number + 1}": originals.cifar10_batch(
            colour[12 * number : 12 * (number + 1)], ten[12 * number : 12 * (number + 1)]
        )
        for number in range(5)
    }
    return {
        "cifar10": cifar10 | {"test_batch": originals.cifar10_batch(colour[60:], ten[60:])},
        "cifar100": {
            "train": originals.cifar100_file(colour[:60], hundred[:60]),
            "test": originals.cifar100_file(colour[60:], hundred[60:]),
        },
        "svhn": {
            "train_32x32.mat": originals.svhn_file(colour[:60], ten[:60]),
            "test_32x32.mat": originals.svhn_file(colour[60:], ten[60:]),
        },
        "mnist": idx,
        "fashion-mnist": idx,
        "mnist-5k": {"mnist_5k.csv.gz": originals.digits_table(grey[:60], ten[:60])},
    }


@pytest.fixture(scope="session")
def files() -> Mapping[str, Mapping[str, bytes]]:
    return _small_files()


@pytest.fixture
def small(
    files: Mapping[str, Mapping[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mapping[str, Dataset]:
    """Every data set small, the current folder empty, photographs of 32 x 32 in `photographs`."""
    monkeypatch.chdir(tmp_path)
    changed: dict[str, Dataset] = {}
    for name, dataset in DATASETS.items():
        if isinstance(dataset, FileSet):
            held = files[name]
            archive = dataset.archive
            if archive is not None:
                # Another order than that of the originals, as in the published archive.
                packed = originals.archive_of(dict(reversed(held.items())))
                (tmp_path / archive.name).write_bytes(packed)
                archive = original(archive.name, packed)
            known = tuple(original(file, content) for file, content in held.items())
            changed[name] = replace(dataset, originals=known, archive=archive, validation=20)
        elif isinstance(dataset, FolderSet):
            changed[name] = replace(dataset, classes=4, images=None, shape=(3, 32, 32), validation=4)
    for name, dataset in changed.items():
        monkeypatch.setitem(DATASETS, name, dataset)
    return changed


@pytest.fixture
def prepared(small: Mapping[str, Dataset], files: Mapping[str, Mapping[str, bytes]]) -> Mapping[str, Dataset]:
    """The same, each where `amuse-lab prepare` puts it."""
    originals.write_photographs(Path("photographs"), classes=4, training=4, testing=2)
    for name, dataset in small.items():
        folder = Path("data") / name
        if isinstance(dataset, FolderSet):
            dataset.prepare(Path("photographs"), folder)
            continue
        folder.mkdir(parents=True)
        for file, content in files[name].items():
            (folder / file).write_bytes(content)
    return small
