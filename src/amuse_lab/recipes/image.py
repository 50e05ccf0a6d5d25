"""Image classifiers: the 16 published runs, named DATA-MODEL-METHOD, fine-tuning of a ViT, and MNIST.

Every setting of a published run is that of the paper's (arXiv 2605.22432) released scripts;
docs/reproduce.md has the commands, what they cost and where they differ. The settings on MNIST are the best
of six or more trials for each optimizer, `records/mnist`; those of the fine-tuning
are starting points that nobody has tried.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from amuse_lab.config import OptimizerConfig, RunConfig
from amuse_lab.errors import ConfigError, unknown
from amuse_lab.optimizers import SGD, AdamW, Amuse, Anytime, MuonSGD, ScheduleFreeSGD
from amuse_lab.tasks.image.models import (
    DenseNetConfig,
    ImageModelConfig,
    ResNetConfig,
    ViTConfig,
    WideResNetConfig,
)
from amuse_lab.tasks.image.task import FineTuningConfig, ImageConfig

RESNET_50 = ResNetConfig((3, 4, 6, 3), (64, 128, 256, 512), bottleneck=True, large_stem=True)
RESNET_3_96 = ResNetConfig((3, 3, 3, 3), (96, 192, 384, 768))
RESNET_20 = ResNetConfig((3, 3, 3), (16, 32, 64))
RESNET_8 = ResNetConfig((1, 1, 1), (16, 32, 64))
VIT_B_16 = ViTConfig(patch=16, width=768, depth=12, heads=12)
VIT_SMALL = ViTConfig(patch=4, width=64, depth=4, heads=4)


@dataclass(frozen=True)
class Run:
    """What the published runs on one data set share.

    Attributes:
        data: Name of the data set.
        model: Size and shape of the classifier.
        batch: Images of one training step.
        epochs: How often each training image was seen.
        steps: Training steps in all.
        warmup_steps: Warm-up steps of every method.
        amuse: Learning rate, weight decay, beta1 and rho of AMUSE.
        muon_sgd: Learning rate of Muon, learning rate of SGD, and weight decay of Muon with SGD.
        sf_sgd: Learning rate and weight decay of Schedule-Free SGD.
        sgd: Learning rate and weight decay of SGD.
    """

    data: str
    model: ImageModelConfig
    batch: int
    epochs: int
    steps: int
    warmup_steps: int
    amuse: tuple[float, float, float, float]
    muon_sgd: tuple[float, float, float]
    sf_sgd: tuple[float, float]
    sgd: tuple[float, float]

    def methods(self) -> Mapping[str, OptimizerConfig]:
        """Return the optimizers by the names of their scripts."""
        warmup = self.warmup_steps
        lr, decay, beta1, rho = self.amuse
        matrices, rest, muon_decay = self.muon_sgd
        return {
            "amuse": Amuse(
                auxiliary="sgd",
                lr=lr,
                weight_decay=decay,
                momentum=0.95,
                beta1=beta1,
                rho=rho,
                warmup_steps=warmup,
            ),
            "muon-sgd": MuonSGD(
                lr=matrices, lr_rest=rest, weight_decay=muon_decay, momentum=0.9, warmup_steps=warmup
            ),
            "sf-sgd": ScheduleFreeSGD(
                lr=self.sf_sgd[0], weight_decay=self.sf_sgd[1], beta1=0.9, warmup_steps=warmup
            ),
            "sgd": SGD(lr=self.sgd[0], weight_decay=self.sgd[1], momentum=0.9, warmup_steps=warmup),
        }


PUBLISHED: Mapping[str, Run] = {
    "cifar10-wrn16x8": Run(
        "cifar10",
        WideResNetConfig(depth=16, width=8),
        batch=128,
        epochs=300,
        steps=117_300,
        warmup_steps=5_859,
        amuse=(0.2, 0.02, 0.8, 0.3),
        muon_sgd=(0.05, 1e-4, 0.01),
        sf_sgd=(10.0, 1e-4),
        sgd=(0.2, 1e-4),
    ),
    "cifar100-densenet": Run(
        "cifar100",
        DenseNetConfig(depths=(6, 12, 24, 16), growth=12),
        batch=64,
        epochs=300,
        steps=234_600,
        warmup_steps=11_718,
        amuse=(0.5, 0.002, 0.7, 0.4),
        muon_sgd=(0.05, 1e-3, 0.005),
        sf_sgd=(5.0, 2e-4),
        sgd=(0.05, 2e-4),
    ),
    "svhn-resnet3x96": Run(
        "svhn",
        RESNET_3_96,
        batch=32,
        epochs=300,
        steps=687_000,
        warmup_steps=34_339,
        amuse=(0.1, 0.001, 0.85, 0.2),
        muon_sgd=(0.05, 1e-3, 0.002),
        sf_sgd=(1.0, 2e-4),
        sgd=(0.1, 1e-4),
    ),
    "imagenet-resnet50": Run(
        "imagenet",
        RESNET_50,
        batch=256,
        epochs=100,
        steps=500_500,
        warmup_steps=25_022,
        amuse=(0.5, 5e-4, 0.6, 0.8),
        muon_sgd=(0.1, 1e-5, 0.001),
        sf_sgd=(1.5, 5e-5),
        sgd=(0.05, 1e-4),
    ),
}
"""The published experiments by data and model."""


FINE_TUNING: Mapping[str, tuple[int, int, int]] = {
    "imagenet": (1024, 62_500, 1250),
    "isic2019": (128, 10_000, 200),
}
"""Images per step, steps and steps between evaluations of the fine-tuning on each data set."""


def _published() -> Iterator[tuple[RunConfig, str]]:
    for experiment, run in PUBLISHED.items():
        for method, optimizer in run.methods().items():
            config = RunConfig(
                recipe=f"{experiment}-{method}",
                task=ImageConfig(model=run.model, data=run.data, batch=run.batch),
                optimizer=optimizer,
                steps=run.steps,
                eval_every=run.steps // run.epochs,
                device="cuda",
            )
            yield config, f"The published run of {method} on {run.data}, {run.epochs} epochs, for GPUs."


def _fine_tuning() -> Iterator[tuple[RunConfig, str]]:
    for data, (batch, steps, eval_every) in FINE_TUNING.items():
        warmup = steps // 20
        for optimizer in (
            Amuse(lr=1e-3, weight_decay=0.05, warmup_steps=warmup),
            AdamW(lr=1e-4, weight_decay=0.05, warmup_steps=warmup),
        ):
            config = RunConfig(
                recipe=f"{data}-vit-b16-{optimizer.name}",
                task=FineTuningConfig(model=VIT_B_16, data=data, batch=batch, new_head=True),
                optimizer=optimizer,
                steps=steps,
                eval_every=eval_every,
                micro_batch=128,
                precision="amp-bf16",
                device="cuda",
            )
            yield config, f"Fine-tuning of a pretrained ViT-B/16 on {data} with untested settings, for GPUs."


_MNIST_RESNET8: Mapping[str, OptimizerConfig] = {
    config.name: config
    for config in (
        Amuse(auxiliary="sgd", lr=0.1, weight_decay=0.01, warmup_steps=60, t0_steps=240),
        Anytime(
            auxiliary="sgd",
            auxiliary_momentum=0.0,
            split_qkv=False,
            lr=0.15,
            lr_rest=0.2,
            weight_decay=0.0013,
            warmup_steps=30,
        ),
        MuonSGD(lr=0.05, lr_rest=0.01, weight_decay=0.01, warmup_steps=60),
        ScheduleFreeSGD(lr=5.0, weight_decay=1e-4, warmup_steps=60),
        SGD(lr=0.2, weight_decay=1e-4, warmup_steps=60),
        AdamW(lr=0.006, weight_decay=0.01, warmup_steps=60),
    )
}

_MNIST_VIT: Mapping[str, OptimizerConfig] = {
    config.name: config
    for config in (
        Amuse(lr=0.02, weight_decay=0.05, warmup_steps=80, t0_steps=160),
        AdamW(lr=0.004, weight_decay=0.1, warmup_steps=80),
    )
}


def mnist_resnet8(optimizer: str = "amuse") -> RunConfig:
    """A ResNet-8 on 5,000 digits of MNIST, less than a minute on two cores.

    `--task.model.depths 3 3 3` makes it a ResNet-20.

    Args:
        optimizer: One of those it has settings for, `records/mnist`; those of "anytime" are from the study
            `mnist-anytime`.

    Raises:
        ConfigError: If there are none for this optimizer.
    """
    if optimizer not in _MNIST_RESNET8:
        raise unknown("optimizer", optimizer, _MNIST_RESNET8)
    return RunConfig(
        recipe="mnist-resnet8",
        task=ImageConfig(model=RESNET_8, data="mnist-5k", batch=64, refresh_batches=20),
        optimizer=_MNIST_RESNET8[optimizer],
        steps=600,
        eval_every=100,
    )


def resnet20(optimizer: str = "amuse") -> RunConfig:
    """A ResNet-20 on images of your own, `--task.data NAME`; on the digits on board without that.

    The settings are those of `mnist-resnet8` and untested on any other data.

    Args:
        optimizer: One of those that `mnist-resnet8` has settings for.

    Raises:
        ConfigError: If there are none for this optimizer.
    """
    config = mnist_resnet8(optimizer)
    task = ImageConfig(model=RESNET_20, data="mnist-5k", batch=32, refresh_batches=20)
    return replace(config, recipe="resnet20", task=task)


def mnist_vit(optimizer: str = "amuse") -> RunConfig:
    """A small vision transformer on 5,000 digits of MNIST, a minute or two on two cores.

    Args:
        optimizer: One of those it has settings for, `records/mnist`.

    Raises:
        ConfigError: If there are none for this optimizer.
    """
    if optimizer not in _MNIST_VIT:
        raise unknown("optimizer", optimizer, _MNIST_VIT)
    return RunConfig(
        recipe="mnist-vit",
        task=ImageConfig(model=VIT_SMALL, data="mnist-5k", batch=64),
        optimizer=_MNIST_VIT[optimizer],
        steps=800,
        eval_every=100,
    )


def _recipe(config: RunConfig, summary: str) -> Callable[..., RunConfig]:
    """A recipe of one optimizer, whose settings belong to it."""

    def recipe(optimizer: str = config.optimizer.name) -> RunConfig:
        if optimizer != config.optimizer.name:
            experiment = config.recipe.removesuffix(f"-{config.optimizer.name}")
            raise ConfigError(
                f"{config.recipe} is a run of {config.optimizer.name}, not of {optimizer}; there are "
                f"{', '.join(name for name in RECIPES if name.startswith(experiment))}"
            )
        return config

    recipe.__doc__ = summary
    return recipe


RECIPES: Mapping[str, Callable[..., RunConfig]] = {
    "mnist-resnet8": mnist_resnet8,
    "mnist-vit": mnist_vit,
    "resnet20": resnet20,
    **{config.recipe: _recipe(config, summary) for config, summary in (*_published(), *_fine_tuning())},
}
"""All recipes by name."""
