import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amuse_lab.cli import main
from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.own import OwnImages, holds_images
from amuse_lab.tasks.image.data.sets import find_dataset

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 40, 50)}


def write_images(root: Path, each: int = 12, ending: str = "png") -> None:
    """A class for each colour, in images of many sizes with some noise on them."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            height, width = generator.integers(20, 90, size=2)
            noise = generator.normal(0, 25, size=(height, width, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{ending}")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_own_images_from_beginning_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    """As the README has it; three colours are told apart after a few steps."""
    write_images(Path("photos"))
    assert main(["prepare", "colours", "--from", "photos", "--size", "16"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "data/colours: complete",
        "  train: 36 images",
        "  3 classes: blue, green, red",
        "train on it: amuse-lab train resnet20 --task.data colours",
    ]
    assert main(["prepare", "colours", "--from", "photos", "--size", "16"]) == 0
    small = ["--task.model.depths", "1", "1", "--task.model.widths", "8", "16", "--task.workers", "1"]
    short = ["--steps", "40", "--optimizer.warmup-steps", "5", "--optimizer.t0-steps", "10"]
    assert main(["train", "resnet20", "--task.data", "colours", "--task.batch", "12", *small, *short]) == 0
    (folder,) = Path("runs/resnet20").iterdir()
    assert json.loads((folder / "summary.json").read_text())["val_accuracy"] == 1.0
    assert main(["export", str(folder)]) == 0
    described = json.loads((folder / "export" / "config.json").read_text())
    assert described["label_names"] == ["blue", "green", "red"]
    assert described["input_size"] == [3, 16, 16]
    model = torch.export.load(folder / "export" / "model.pt2").module()
    mean, std = (torch.tensor(described[name])[:, None, None] for name in ("mean", "std"))
    for number, name in enumerate(described["label_names"]):
        flat = torch.tensor(COLOURS[name])[:, None, None].expand(3, 16, 16) / 255
        assert int(model(((flat - mean) / std)[None]).argmax()) == number


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_test_set_of_its_own_is_kept_for_the_end(test: str) -> None:
    write_images(Path("photos/train"))
    write_images(Path(f"photos/{test}"), each=2, ending="JPG")
    assert main(["prepare", "colours", "--from", "photos"]) == 0
    training, tested = find_dataset("colours").load(None, device=torch.device("cpu"), workers=1)
    assert tested is not None
    assert training.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert tested.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert tested.plain(np.array([5, 0])).shape == (2, 3, 64, 64)
    assert tested.plain(np.array([5])).float().mean((0, 2, 3)).tolist() == pytest.approx(
        COLOURS["red"], abs=9
    )


def test_every_class_is_held_out_where_there_are_enough_images() -> None:
    write_images(Path("photos"), each=4)
    images = OwnImages.find(Path("photos"), 16, skip_bad=False)
    assert images.validation == 3
    assert OwnImages(Path(), 16, ("a", "b"), (("x", 0),) * 200, ()).validation == 20


def test_a_file_that_cannot_be_read_is_named_or_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"))
    for path in (Path("photos/green/3.png"), Path("photos/red/5.png")):
        path.write_bytes(path.read_bytes()[:-100])
    assert main(["prepare", "colours", "--from", "photos"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("amuse-lab: cannot read photos/green/3.png: ")
    assert error.endswith("; --skip-bad passes over such files\n")
    assert main(["prepare", "colours", "--from", "photos", "--skip-bad"]) == 0
    assert "train: 34 images\n  skipped: 2 files that cannot be read\n" in capsys.readouterr().out


def test_folders_laid_out_otherwise_are_refused() -> None:
    def refused(message: str, root: str = "photos") -> None:
        with pytest.raises(DataError, match=message):
            OwnImages.find(Path(root), 16, skip_bad=False)

    refused("cannot read nowhere: No such file or directory", "nowhere")
    write_images(Path("photos"))
    (Path("photos") / "empty").mkdir()
    refused(r"photos/empty must hold images that end with \.jpeg, \.jpg, \.png")
    (Path("photos") / "empty").rename("photos/red/more")
    refused("photos/red must hold two or more folders, one for each class, has 1", "photos/red")
    Path("all").mkdir()
    Path("photos").rename("all/train")
    write_images(Path("all/test"), each=1)
    Path("all/test/green").rename("all/test/yellow")
    refused("all/test must hold the classes of the training images, but has yellow", "all")


def test_images_and_text_are_told_apart() -> None:
    write_images(Path("photos"))
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("To be")
    assert holds_images(Path("photos"))
    assert not holds_images(Path("texts"))
    assert not holds_images(Path("texts/a.txt"))
    assert not holds_images(Path("nowhere"))


@pytest.mark.parametrize("damage", ["", "[]", '{"version": 1, "kind": "own"}', '{"kind": "other"}', "\xff"])
def test_a_damaged_listing_is_refused(damage: str) -> None:
    write_images(Path("photos"))
    assert main(["prepare", "colours", "--from", "photos"]) == 0
    path = Path("data/colours/images.json")
    label = json.loads(path.read_text())
    label["train"][0][1] = 3
    for content in (damage, json.dumps(label)):
        path.write_text(content)
        with pytest.raises(DataError, match=r"images\.json is "):
            find_dataset("colours")


def test_images_that_have_moved_are_missed(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"))
    assert main(["prepare", "colours", "--from", "photos"]) == 0
    Path("photos").rename("moved")
    assert main(["train", "resnet20", "--task.data", "colours"]) == 2
    assert "the images of colours must be in " in capsys.readouterr().err
    assert main(["prepare", "mnist", "--from", "moved"]) == 2
