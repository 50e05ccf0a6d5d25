"""The recipes of the published runs against the published tables, written down a second time; all run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from amuse_lab.arguments import parse
from amuse_lab.config import RunConfig, from_json, to_json
from amuse_lab.errors import ConfigError
from amuse_lab.progress import Silence
from amuse_lab.recipes.image import RECIPES
from amuse_lab.records import RunFolder
from amuse_lab.tasks.image.data import dataset as kinds
from amuse_lab.tasks.image.data.decoding import Job, Pixels, decode
from amuse_lab.tasks.image.models import (
    DenseNetConfig,
    ImageModelConfig,
    ResNetConfig,
    ViTConfig,
    WideResNetConfig,
)
from amuse_lab.tasks.image.task import FineTuningConfig
from amuse_lab.train import train

EXPERIMENTS = {
    "cifar10-wrn16x8": ("cifar10", 128, 117_300, 5_859, 391, 10.97),
    "cifar100-densenet": ("cifar100", 64, 234_600, 11_718, 782, 1.04),
    "svhn-resnet3x96": ("svhn", 32, 687_000, 34_339, 2_290, 39.24),
    "imagenet-resnet50": ("imagenet", 256, 500_500, 25_022, 5_005, 25.56),
}
"""Data, images per step, steps, warm-up, steps of an epoch, million parameters."""

AMUSE = {
    "auxiliary": "sgd",
    "momentum": 0.95,
    "t0_steps": None,
    "lr_rest": None,
    "c_warmup_steps": 0,
    "r": 0.0,
}
MUON = {"momentum": 0.9, "schedule": "cosine"}

SETTINGS = {
    "cifar10-wrn16x8-amuse": {"lr": 0.2, "weight_decay": 0.02, "beta1": 0.8, "rho": 0.3, **AMUSE},
    "cifar10-wrn16x8-muon-sgd": {"lr": 0.05, "lr_rest": 1e-4, "weight_decay": 0.01, **MUON},
    "cifar10-wrn16x8-sf-sgd": {"lr": 10, "weight_decay": 1e-4, "beta1": 0.9},
    "cifar10-wrn16x8-sgd": {"lr": 0.2, "weight_decay": 1e-4, **MUON},
    "cifar100-densenet-amuse": {"lr": 0.5, "weight_decay": 0.002, "beta1": 0.7, "rho": 0.4, **AMUSE},
    "cifar100-densenet-muon-sgd": {"lr": 0.05, "lr_rest": 1e-3, "weight_decay": 0.005, **MUON},
    "cifar100-densenet-sf-sgd": {"lr": 5, "weight_decay": 2e-4, "beta1": 0.9},
    "cifar100-densenet-sgd": {"lr": 0.05, "weight_decay": 2e-4, **MUON},
    "svhn-resnet3x96-amuse": {"lr": 0.1, "weight_decay": 0.001, "beta1": 0.85, "rho": 0.2, **AMUSE},
    "svhn-resnet3x96-muon-sgd": {"lr": 0.05, "lr_rest": 1e-3, "weight_decay": 0.002, **MUON},
    "svhn-resnet3x96-sf-sgd": {"lr": 1, "weight_decay": 2e-4, "beta1": 0.9},
    "svhn-resnet3x96-sgd": {"lr": 0.1, "weight_decay": 1e-4, **MUON},
    "imagenet-resnet50-amuse": {"lr": 0.5, "weight_decay": 5e-4, "beta1": 0.6, "rho": 0.8, **AMUSE},
    "imagenet-resnet50-muon-sgd": {"lr": 0.1, "lr_rest": 1e-5, "weight_decay": 0.001, **MUON},
    "imagenet-resnet50-sf-sgd": {"lr": 1.5, "weight_decay": 5e-5, "beta1": 0.9},
    "imagenet-resnet50-sgd": {"lr": 0.05, "weight_decay": 1e-4, **MUON},
}

ON_BOARD = {
    "mnist-resnet8": ("amuse", "anytime", "muon-sgd", "sf-sgd", "sgd", "adamw"),
    "mnist-vit": ("amuse", "adamw"),
    "resnet20": ("amuse", "anytime", "muon-sgd", "sf-sgd", "sgd", "adamw"),
}
"""The recipes on MNIST, and the optimizers that they have settings for."""

FINE_TUNING = (
    *("imagenet-vit-b16-amuse", "imagenet-vit-b16-adamw", "isic2019-vit-b16-amuse", "isic2019-vit-b16-adamw"),
)

TINY: dict[type[ImageModelConfig], ImageModelConfig] = {
    WideResNetConfig: WideResNetConfig(depth=10, width=1),
    DenseNetConfig: DenseNetConfig((1, 1), growth=4),
    ResNetConfig: ResNetConfig((1, 1), (4, 6)),
    ViTConfig: ViTConfig(patch=4, width=8, depth=1, heads=2),
}


def test_every_published_run_has_a_recipe() -> None:
    assert set(RECIPES) == {*SETTINGS, *ON_BOARD, *FINE_TUNING}


@pytest.mark.parametrize("name", SETTINGS)
def test_recipes_have_the_published_settings(name: str) -> None:
    experiment = next(known for known in EXPERIMENTS if name.startswith(known))
    data, batch, steps, warmup, epoch, millions = EXPERIMENTS[experiment]
    config = RECIPES[name]()
    assert config.optimizer.name == name.removeprefix(f"{experiment}-")
    settings = asdict(config.optimizer)
    assert {setting: settings[setting] for setting in SETTINGS[name]} == SETTINGS[name]
    assert (settings["warmup_steps"], settings["ema"]) == (warmup, None)
    assert (config.task.data, config.task.batch, config.steps, config.eval_every) == (
        data,
        batch,
        steps,
        epoch,
    )
    assert (config.seed, config.clip, config.precision, config.micro_batch) == (0, None, "fp32", None)
    assert (config.task.refresh_batches, config.task.eval_images) == (50, 1000)
    with torch.device("meta"):
        model = config.task.build_model()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", [*SETTINGS, *FINE_TUNING])
def test_recipes_are_of_their_own_optimizer_alone(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe()
    assert config.recipe == name
    assert recipe(config.optimizer.name) == config
    assert (recipe.__doc__ or "").endswith(".")
    with pytest.raises(ConfigError, match=rf"^{name} is a run of {config.optimizer.name}, not of lion"):
        recipe("lion")


@pytest.mark.parametrize("name", ON_BOARD)
def test_recipes_on_board_compare_optimizers(name: str) -> None:
    recipe = RECIPES[name]
    configs = [recipe(optimizer) for optimizer in ON_BOARD[name]]
    assert recipe() == configs[0]
    assert [config.optimizer.name for config in configs] == list(ON_BOARD[name])
    assert {replace(config, optimizer=configs[0].optimizer) for config in configs} == {configs[0]}
    with pytest.raises(ConfigError, match="unknown optimizer 'lion'"):
        recipe("lion")


class AtOnce:
    """Decodes in this process; test_decoding.py has the others."""

    def __init__(self, size: int, workers: int) -> None:
        self._size = size
        assert workers == 1

    def __call__(self, jobs: Sequence[Job], upcoming: Iterable[Sequence[Job]] = ()) -> Pixels:
        for announced in upcoming:
            assert len(announced) > 0
        return np.stack([decode(job, self._size) for job in jobs])


@pytest.mark.parametrize(
    ("name", "optimizer"), [(name, each) for name in RECIPES for each in ON_BOARD.get(name, (None,))]
)
@pytest.mark.usefixtures("prepared")
def test_at_a_reduced_width_a_recipe_runs(
    name: str, optimizer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "Decoder", AtOnce)
    published = RECIPES[name](optimizer) if optimizer else RECIPES[name]()
    tiny = TINY[type(published.task.model)]
    changes: dict[str, object] = {"model": tiny, "batch": 4, "refresh_batches": 2, "workers": 1}
    if published.task.data == "mnist-5k":
        changes["folder"] = "data/mnist-5k"
    if isinstance(published.task, FineTuningConfig):
        weights = tiny.build((3, 32, 32), 11).state_dict()
        save_file(weights, "pretrained.safetensors")
        changes["init_from"] = "pretrained.safetensors"
    short: dict[str, object] = {"warmup_steps": 2}
    if published.optimizer.name == "amuse":
        short["t0_steps"] = 2
    config = replace(
        published,
        task=replace(published.task, **changes),
        optimizer=replace(published.optimizer, **short),
        device="cpu",
        precision="fp32",
        micro_batch=None,
        steps=3,
        eval_every=2,
        log_every=1,
        runs=Path("runs"),
    )
    summary = train(config, Silence()).summary
    assert (summary["status"], summary["steps"], summary["images"]) == ("finished", 3, 12)
    assert math.isfinite(summary["val_loss"])
    assert 0 <= summary["val_accuracy"] <= 1
    (path,) = Path("runs", name).iterdir()
    lines = RunFolder(path).metrics()
    splits = [line["split"] for line in lines]
    assert [splits.count(split) for split in ("train", "val_x", "val_y")] == [3, 2, 2]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_amuse_learns_the_digits(tmp_path: Path) -> None:
    """The recipe itself, at a fifth of its length; a tenth of the digits is what guessing would get."""
    whole = RECIPES["mnist-resnet8"]()
    config = replace(
        whole,
        task=replace(whole.task, refresh_batches=5),
        optimizer=replace(whole.optimizer, warmup_steps=12, t0_steps=48),
        steps=whole.steps // 5,
        runs=tmp_path,
    )
    assert train(config, Silence()).summary["val_accuracy"] > 0.93


@pytest.mark.parametrize("name", ["cifar10-wrn16x8-amuse", "isic2019-vit-b16-amuse", "mnist-vit"])
def test_settings_change_on_the_command_line_and_survive_a_file(name: str) -> None:
    overrides = ["--task.batch", "7", "--task.refresh-batches", "3", "--task.workers", "2", "--steps", "9"]
    overrides += ["--task.init-from", "weights.safetensors", "--task.new-head", "--task.folder", "elsewhere"]
    size = ["--task.model.width", "2"] if "wrn" in name else ["--task.model.depth", "2"]
    config = parse(RunConfig, [*overrides, *size], default=RECIPES[name](), prog="", description="")
    assert (config.task.batch, config.task.workers, config.task.init_from) == (7, 2, "weights.safetensors")
    assert type(config.task) is type(RECIPES[name]().task)
    content = to_json(config)
    assert from_json(RECIPES[name](), content) == replace(config, runs=RunConfig.runs)
