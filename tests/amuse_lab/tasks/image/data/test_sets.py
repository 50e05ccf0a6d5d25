import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from amuse_lab.errors import DataError, RequestError
from amuse_lab.tasks.image.command import PREPARED, parse_images
from amuse_lab.tasks.image.data.dataset import Dataset, FileSet, FolderSet
from amuse_lab.tasks.image.data.folders import LISTING, Listing
from amuse_lab.tasks.image.data.sets import DATASETS
from amuse_lab.tasks.image.source import Source
from tests.amuse_lab.tasks.image.originals import random_images, write_jpeg, write_photographs

Files = Mapping[str, Mapping[str, bytes]]
Sets = Mapping[str, Dataset]
DATA = Path("data")

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


CHECKSUMS = {
    "cifar10": {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
    "svhn": {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "mnist-5k": {
        "mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    },
}

PUBLISHED = {
    "cifar10": (5000, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), 4, True),
    "cifar100": (5000, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4), 4, True),
    "svhn": (5000, (111.6135, 113.169, 120.564), (50.49, 51.255, 50.235), 4, True),
    "mnist": (5000, (33.3285,), (78.5655,), 2, False),
    "fashion-mnist": (5000, (72.93,), (90.015,), 2, True),
    "mnist-5k": (1000, (33.3285,), (78.5655,), 2, False),
}
"""Images held out, mean and standard deviation of 255, largest shift, flips."""


@pytest.mark.parametrize("name", CHECKSUMS)
def test_the_published_files_and_numbers(name: str) -> None:
    dataset = DATASETS[name]
    assert isinstance(dataset, FileSet)
    files = (*dataset.originals, *([dataset.archive] if dataset.archive else []))
    assert {file.name: file.checksum for file in files} == CHECKSUMS[name]
    validation, mean, std, padding, flip = PUBLISHED[name]
    assert [255 * value for value in dataset.mean] == pytest.approx(mean)
    assert [255 * value for value in dataset.std] == pytest.approx(std)
    assert (dataset.validation, dataset.padding, dataset.flip) == (validation, padding, flip)


def test_every_data_set_is_held_to_its_numbers() -> None:
    assert CHECKSUMS.keys() == PUBLISHED.keys() == DATASETS.keys() - {"imagenet", "isic2019"}
    imagenet = DATASETS["imagenet"]
    assert isinstance(imagenet, FolderSet)
    assert (imagenet.images, imagenet.classes, imagenet.validation) == ((1_281_167, 50_000), 1000, 5000)
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert imagenet.shape == (3, 224, 224)


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
        (["--from"], "--from needs a value"),
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

    with pytest.raises(DataError, match=r"train must hold 13 images, has 12"):
        Listing.find(root, 4, (13, 8))
    with pytest.raises(DataError, match=r"val must hold 7 images, has 8"):
        Listing.find(root, 4, (12, 7))
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


@pytest.mark.usefixtures("prepared")
def test_a_prepared_listing_is_compared_with_what_is_there() -> None:
    prepare("imagenet", "photographs")
    with pytest.raises(DataError, match="cannot read nowhere/train"):
        prepare("imagenet", "nowhere")
    Path("photographs/val/n00000003/n00000003_1.JPEG").unlink()
    with pytest.raises(
        DataError, match="data/imagenet must list the images of photographs, but lists others"
    ):
        prepare("imagenet", "photographs")


@pytest.mark.usefixtures("small")
def test_an_empty_folder_is_filled_and_a_relative_one_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_photographs(Path("photographs"), classes=4, training=3, testing=2)
    target = DATA.absolute() / "imagenet"
    target.mkdir(parents=True)
    prepare("imagenet", "photographs")
    monkeypatch.chdir("photographs")
    training, _ = DATASETS["imagenet"].load(target, device=torch.device("cpu"), workers=1)
    assert training.plain(np.array([0])).shape == (1, 3, 32, 32)


@pytest.mark.usefixtures("small")
def test_too_few_photographs_to_hold_some_out_are_refused() -> None:
    write_photographs(Path("photographs"), classes=4, training=1, testing=1)
    with pytest.raises(
        DataError, match="photographs/train must hold more than the 4 images that are held out"
    ):
        prepare("imagenet", "photographs")
    assert not DATA.exists()


@pytest.mark.usefixtures("small")
def test_paths_that_nobody_can_have_are_refused() -> None:
    for arguments in (("x" * 300,), (".", "--out", "x" * 300)):
        with pytest.raises(DataError, match=r"cannot read x{300}: File name too long"):
            prepare("cifar10", *arguments)


@pytest.mark.usefixtures("prepared")
def test_listings_of_other_data_sets_are_refused() -> None:
    path = DATA / "imagenet" / LISTING
    content = json.loads(path.read_text())
    for part in content["parts"].values():
        del part["n00000003"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="train must hold 4 folders, one a class, has 3"):
        load("imagenet")


DAMAGES = (
    *("", "[]", "{}", '{"version": 1, "root": "x", "parts": {"train": {}}}', "[" * 100_000),
    *(
        f'{{"version": 1, "root": "x", "parts": {{"train": {held}, "val": {{}}}}}}'
        for held in ('{"a": 5}', '{"a": [5]}')
    ),
)


@pytest.mark.parametrize("damage", DAMAGES)
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
