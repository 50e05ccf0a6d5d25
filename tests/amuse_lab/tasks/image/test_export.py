"""Exported classifiers are loaded by torch alone and have to agree with ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amuse_lab.config import RunConfig
from amuse_lab.errors import DataError, RecordError
from amuse_lab.export import parse, run
from amuse_lab.recipes import find
from amuse_lab.recipes.smoke import reduced
from amuse_lab.records import RunFolder

RECIPES = ["cifar10-wrn16x8-amuse", "cifar100-densenet-sgd", "imagenet-resnet50-amuse", "mnist-vit"]


def finished(name: str, tmp_path: Path) -> tuple[RunConfig, Path]:
    """A small run with weights far from their initial values."""
    config = reduced(find(name)())
    folder = RunFolder.create(config, {})
    torch.manual_seed(0)
    model = config.task.build_model()
    state = {
        key: torch.rand_like(value) + 0.1 if value.dtype.is_floating_point else value
        for key, value in model.state_dict().items()
    }
    save_file(state, folder.path / "model.safetensors")
    folder.close()
    assert tmp_path in folder.path.absolute().parents
    return config, folder.path


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_torch_alone_computes_the_same_for_batches_of_any_size(name: str, tmp_path: Path) -> None:
    config, folder = finished(name, tmp_path)
    run(parse([str(folder)]))
    ours = config.task.build_model().eval()
    ours.load_state_dict(load_file(folder / "model.safetensors"))
    described = json.loads((folder / "export" / "config.json").read_text())
    assert (described["num_classes"], described["input_size"]) == (10, [1, 28, 28])
    theirs = torch.export.load(folder / "export" / "model.pt2").module()
    for count in (1, 2, 7):
        images = torch.rand(count, 1, 28, 28)
        with torch.no_grad():
            expected = ours(images)
        torch.testing.assert_close(theirs(images), expected, rtol=1e-4, atol=1e-4)
    assert load_file(folder / "export" / "model.safetensors").keys() == ours.state_dict().keys()


def test_nothing_of_this_package_is_needed(tmp_path: Path) -> None:
    _, folder = finished("mnist-resnet8", tmp_path)
    run(parse([str(folder), "--out", "out"]))
    program = "import sys, torch; sys.modules['amuse_lab'] = sys.modules['amuse_optim'] = None; "
    program += "print(torch.export.load('out/model.pt2').module()(torch.zeros(3, 1, 28, 28)).shape)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.Size([3, 10])\n"


def test_what_is_missing_or_there_already_is_named(tmp_path: Path) -> None:
    _, folder = finished("mnist-resnet8", tmp_path)
    Path("there").mkdir()
    with pytest.raises(RecordError, match="there exists already"):
        run(parse([str(folder), "--out", "there"]))
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"cannot read .*model\.safetensors: No such file"):
        run(parse([str(folder)]))
    assert not (folder / "export").exists()
