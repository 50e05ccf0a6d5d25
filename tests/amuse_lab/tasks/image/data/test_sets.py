import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amuse_lab.errors import DataError, RequestError
from amuse_lab.tasks.image.command import PREPARED, parse_images
from amuse_lab.tasks.image.data.folders import LISTING, Listing
from amuse_lab.tasks.image.data.sets import DATA, DATASETS, Dataset, FileSet
from amuse_lab.tasks.image.source import Source
from tests.amuse_lab.tasks.image.originals import random_images, write_jpeg, write_photographs

Files = Mapping[str, Mapping[str, bytes]]
Sets = Mapping[str, Dataset]

COLOUR = ("cifar10", "cifar100", "svhn")
GREY = ("mnist", "fashion-mnist")


def prepare(name: str, path: Path | str, *options: str) -> None:
    parse_images(name, ["--from", str(path), *options]).run()


def load(name: str) -> tuple[Source, Source | None]:
    return DATASETS[name].load(None, device=torch.device("cpu"), workers=1)


def check(name: str) -> None:
    """The images are those that were written, each with its label."""
    training, test = load(name)
    assert test is not None
    channels, size, classes = (1, 28, 10) if name in GREY else (3, 32, 100 if name == "cifar100" else 10)
    pixels = random_images(80, size, size, channels)
    for source, first, last in ((training, 0, 60), (test, 60, 80)):
        assert source.labels.tolist() == [number % classes for number in range(first, last)]
        found = source.plain(np.arange(last - first)).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(found, pixels[first:last])


@pytest.mark.parametrize("name", [*COLOUR, *GREY])
@pytest.mark.usefixtures("small")
def test_from_a_folder(files: Files, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path("downloads")
    source.mkdir()
    for file, content in files[name].items():
        (source / file).write_bytes(content)
    prepare(name, source)
    check(name)
    assert capsys.readouterr().out.splitlines() == [
        f"data/{name}: complete",
        "  train: 60 images",
        "  test: 20 images",
    ]
    prepare(name, "no longer needed")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_from_the_archive(small: Sets, name: str) -> None:
    dataset = small[name]
    assert isinstance(dataset, FileSet)
    assert dataset.archive is not None
    prepare(name, dataset.archive.name, "--out", "elsewhere/images")
    assert not DATA.exists()
    Path("elsewhere/images").rename(name)
    DATA.mkdir()
    Path(name).rename(DATA / name)
    check(name)


@pytest.mark.parametrize("name", [*COLOUR, *GREY])
def test_a_missing_data_set_says_what_goes_where(name: str) -> None:
    dataset = DATASETS[name]
    assert isinstance(dataset, FileSet)
    with pytest.raises(DataError) as caught:
        dataset.load(Path("nowhere"), device=torch.device("cpu"), workers=1)
    message = str(caught.value)
    first = dataset.originals[0]
    assert message.startswith(f"nowhere/{first.name} (md5 {first.checksum}) is missing: fetch ")
    assert f"amuse-lab prepare {name} --from" in message
    assert dataset.origin in message
    if dataset.archive is not None:
        assert f"{dataset.archive.name} (md5 {dataset.archive.checksum})" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_the_published_checksums(name: str) -> None:
    dataset = DATASETS[name]
    assert isinstance(dataset, FileSet)
    known = {original.checksum for original in (*dataset.originals, dataset.archive) if original}
    assert (
        known
        >= {
            "cifar10": {"c58f30108f718f92721af3b95e74349a"},
            "cifar100": {"eb9058c3a382ffc7106e4002c42a8d85"},
            "svhn": {"e26dedcc434d2e4c54c9b2d4a06d8373", "eb5a983be6a315427106f1b164d9cef3"},
        }[name]
    )


@pytest.mark.parametrize("name", [*COLOUR, *GREY])
@pytest.mark.usefixtures("small")
def test_altered_files_leave_nothing_behind(files: Files, name: str) -> None:
    source = Path("downloads")
    source.mkdir()
    for file, content in files[name].items():
        (source / file).write_bytes(content)
    last = source / list(files[name])[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"^downloads/{last.name} is not the published {last.name}"):
        prepare(name, source)
    assert not DATA.exists()


@pytest.mark.usefixtures("prepared")
def test_damage_after_preparation_is_noticed() -> None:
    path = DATA / "cifar10" / "test_batch"
    content = path.read_bytes()
    path.write_bytes(content[:-1000] + b"x" + content[-999:])
    with pytest.raises(DataError, match="data/cifar10/test_batch is not the published test_batch"):
        load("cifar10")
    with pytest.raises(DataError, match=r"test_batch .*; remove data/cifar10 or choose another --out"):
        prepare("cifar10", "cifar-10-python.tar.gz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from"),
        (["--from"], "--from: expected one argument"),
        (["--from", ".", "--form", "x"], "unknown option --form; did you mean --from"),
        (["--from", "nothing.tar.gz"], "cannot read nothing.tar.gz: No such file or directory"),
        (["--from", "."], "data_batch_1 .* is missing: --from must be cifar-10-python.tar.gz"),
    ],
)
def test_wrong_requests_say_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        parse_images("cifar10", arguments).run()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in (("svhn", "e26dedcc434d2e4c54c9b2d4a06d8373"), ("imagenet", "JPEG")):
        with pytest.raises(SystemExit) as caught:
            parse_images(name, ["--help"])
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_photographs_stay_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(Path("photographs"), classes=4, training=3, testing=2)
    prepare("imagenet", "photographs")
    assert "train: 12 images\n  test: 8 images" in capsys.readouterr().out
    assert [path.name for path in (DATA / "imagenet").iterdir()] == [LISTING]
    training, test = load("imagenet")
    assert test is not None
    assert training.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert test.plain(np.array([7, 0])).shape == (2, 3, 32, 32)
    Path("photographs/val/n00000003/n00000003_1.JPEG").unlink()
    with pytest.raises(DataError, match="No such file"):
        test.plain(np.array([7]))


@pytest.mark.usefixtures("small")
def test_folders_laid_out_otherwise_are_refused(tmp_path: Path) -> None:
    root = Path("photographs")
    write_photographs(root, classes=4, training=3, testing=2)

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            prepare("imagenet", root)
        assert not DATA.exists()

    with pytest.raises(DataError, match=r"train must hold 12 images, has 12|must hold 13 images, has 12"):
        Listing.find(root, 4, (13, 8))
    write_jpeg(root / "val" / "n00000004" / "image.jpg", random_images(1, 9, 9, 3)[0])
    refused("val must hold 4 folders, one a class, has 5")
    (root / "val" / "n00000000").rename(tmp_path / "away")
    refused("val must hold the same classes as .*/train")
    (tmp_path / "away").rename(root / "val" / "n00000000")
    (root / "val" / "n00000004" / "image.jpg").unlink()
    (root / "val" / "n00000004").rmdir()
    for path in (root / "train" / "n00000002").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(r"train/n00000002 must hold images that end with \.jpeg, \.jpg")
    (root / "val").rename(tmp_path / "validation")
    refused("cannot read .*val: No such file or directory")


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"version": 1, "root": "x", "parts": {"train": {}}}'])
@pytest.mark.usefixtures("prepared")
def test_damaged_listings_are_refused(damage: str) -> None:
    path = DATA / "imagenet" / LISTING
    version = json.loads(path.read_text()) | {"version": 2}
    path.write_text(damage)
    with pytest.raises(
        DataError, match=r"images\.json is damaged: remove data/imagenet and prepare it again"
    ):
        load("imagenet")
    path.write_text(json.dumps(version))
    with pytest.raises(DataError, match="must have version 1, got 2"):
        load("imagenet")
    path.unlink()
    with pytest.raises(DataError, match=r"is missing: unpack .*amuse-lab prepare imagenet --from FOLDER"):
        load("imagenet")


def test_what_a_package_carries_is_not_prepared() -> None:
    assert set(PREPARED) == DATASETS.keys() - {"mnist-5k"}


def test_every_data_set_is_described_and_fits_its_numbers() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.description
        channels = dataset.shape[0]
        assert len(dataset.mean) == len(dataset.std) == channels
        assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
        assert replace(dataset) == dataset
