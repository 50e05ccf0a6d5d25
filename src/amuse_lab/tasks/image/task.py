"""Image classification."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from amuse_lab.config import TaskConfig
from amuse_lab.errors import DataError, require
from amuse_lab.parallel import ALONE, Processes
from amuse_lab.protocols import Batch, Task
from amuse_lab.tasks.image.augmentation import normalized
from amuse_lab.tasks.image.data.dataset import Dataset
from amuse_lab.tasks.image.data.decoding import available_workers
from amuse_lab.tasks.image.data.sets import find_dataset
from amuse_lab.tasks.image.models import ImageModelConfig
from amuse_lab.tasks.image.models.loading import load_weights
from amuse_lab.tasks.image.order import Order, hold_out
from amuse_lab.tasks.image.source import Source
from amuse_lab.tasks.sampling import sampled_cross_entropy
from amuse_optim import refresh_batch_norm

_EVALUATION_BATCH = 256  # images; bounds memory, changes no result beyond rounding
_AHEAD = 2  # batches that are decoded before they are asked for


@dataclass(frozen=True, kw_only=True)
class ImageConfig(TaskConfig):
    """Classification of the images of one data set, by cross-entropy.

    Attributes:
        model: Size and shape of the classifier.
        data: Name of the data set, see `amuse-lab list`.
        batch: Images per step over all processes.
        folder: Where `amuse-lab prepare` has put it; None means the folder NAME in the data root.
        eval_images: Held-out images that evaluations during training use at most, always the same; the final
            evaluation uses all of them.
        refresh_batches: Training batches from which the statistics of BatchNorm are computed anew for an
            evaluation.
        workers: Processes that decode, for data sets of photographs; None takes as many as there are cores.
        init_from: A safetensors file with the weights to start from, of this model or timm's of the same
            size; None starts from random ones.
        new_head: Whether the classifier starts from random weights even then.
    """

    name: ClassVar[str] = "image"
    free: ClassVar[frozenset[str]] = frozenset(("folder", "workers", "eval_images", "refresh_batches"))

    model: ImageModelConfig
    folder: str | None = None
    eval_images: int = 1000
    refresh_batches: int = 50
    workers: int | None = None
    init_from: str | None = None
    new_head: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "eval_images", "refresh_batches"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.workers is None or self.workers >= 1, "workers", "None or at least 1", self.workers)

    def check(self, steps: int) -> None:  # noqa: ARG002 - images are seen again and again
        """Check that images and weights are there."""
        self.dataset().check(self._folder())
        if self.init_from is not None and not Path(self.init_from).is_file():
            raise DataError(f"init_from: {self.init_from} must be a safetensors file, but is not there")

    def _folder(self) -> Path | None:
        return None if self.folder is None else Path(self.folder)

    def dataset(self) -> Dataset:
        """Look the data set up.

        Raises:
            DataError: If there is none of this name.
        """
        return find_dataset(self.data, self._folder())

    def untrained(self) -> nn.Module:
        """Build the classifier from torch's global generator, whatever `init_from` says."""
        dataset = self.dataset()
        return self.model.build(dataset.shape, dataset.classes)

    def fitted(self, default: Self) -> Self:  # noqa: ARG002 - the model takes its sizes from the data set
        """Return the same."""
        return self

    def reduced(self) -> Self:
        """Return a small model of the same kind on the 5,000 digits on board, from random weights."""
        return replace(
            self,
            model=self.model.reduced(),
            data="mnist-5k",
            folder=None,
            batch=16,
            eval_images=100,
            refresh_batches=2,
            init_from=None,
            new_head=False,
        )

    def build_model(self) -> nn.Module:
        """Build the classifier, with the weights of `init_from` if there are any.

        Raises:
            RequestError: If they cannot be read or do not fit.
        """
        model = self.untrained()
        if self.init_from is not None:
            load_weights(model, Path(self.init_from), new_head=self.new_head)
        return model

    def build(self, *, seed: int, device: torch.device) -> Task:
        """Load and check the images."""
        given = self.init_from is not None or not self.new_head
        require(given, "new_head", "given together with init_from", self.new_head)
        dataset = self.dataset()
        workers = self.workers or available_workers()
        training, test = dataset.load(self._folder(), device=device, workers=workers)
        return ImageTask(self, dataset, training, test, seed=seed, device=device)


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(ImageConfig):
    """Image classification that must start from pretrained weights, `init_from`."""

    def check(self, steps: int) -> None:
        """Check that images and weights are there.

        Raises:
            ConfigError: If there is nothing to start from.
        """
        # On the digits on board it is a try, `reduced`.
        given = self.init_from is not None or self.data == "mnist-5k"
        require(given, "init_from", "a safetensors file with the weights to start from", self.init_from)
        super().check(steps)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of a model, in float32 whatever the dtype of its parameters."""
    kind = next(model.parameters()).dtype
    logits: Tensor = model(images.to(kind))
    return logits.float()


class ImageTask:
    """The task over opened images.

    Args:
        config: Settings of the task.
        dataset: Data set of the images: their shape, classes, mean and std, and how many are held out.
        training: The training set, of which a part is held out for validation.
        test: The test set, if there is one.
        seed: Decides which images each step sees, and how.
        device: Device that batches are put on.
    """

    unit = "images"
    measure = "accuracy"
    summarized_as = "val_accuracy"

    def __init__(
        self,
        config: ImageConfig,
        dataset: Dataset,
        training: Source,
        test: Source | None,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._training = training
        self._test = test
        self._device = device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (dataset.mean, dataset.std)
        )
        images = len(training.labels)
        enough = dataset.validation < images
        require(enough, "validation", f"less than the {images} training images", dataset.validation)
        trained_on, self._held_out = hold_out(training.labels, dataset.validation)
        self._order = Order(trained_on, config.batch, f"training {seed}")
        self._refresh_order = Order(trained_on, config.batch, f"statistics {seed}")
        self.batch_size = config.batch
        self.units_per_step = config.batch
        self._remembered: list[tuple[list[Tensor], list[Tensor]]] = []  # parameters and their statistics

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of how many images there are and of their labels, in order; takes no look at the images."""
        told = hashlib.sha256()
        for source in (self._training, self._test):
            labels = np.empty(0) if source is None else source.labels
            told.update(f"{len(labels)} images ".encode() + labels.astype("<i8").tobytes())
        return told.hexdigest()

    @cached_property
    def flops_per_unit(self) -> float:
        """Three times what torch counts in a forward pass: backward takes twice as much."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = self._config.model.build(self._dataset.shape, self._dataset.classes)
            model.eval()(torch.empty(1, *self._dataset.shape))
        return 3.0 * float(counter.get_total_flops())

    def _batch(self, source: Source, pixels: Tensor, images: NDArray[np.int64]) -> Batch:
        labels = torch.from_numpy(source.labels[images]).to(self._device)
        return normalized(pixels.to(self._device), self._mean, self._std), labels

    def _augmented(self, order: Order, step: int, rows: slice = slice(None)) -> Batch:
        visits = order.visits(step, rows)
        upcoming = (order.visits(step + ahead, rows) for ahead in range(1, 1 + _AHEAD))
        return self._batch(self._training, self._training.augmented(visits, upcoming), visits.images)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Return augmented images of a step and their labels."""
        return self._augmented(self._order, step, rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per image."""
        images, labels = batch
        return F.cross_entropy(_logits(model, images), labels)

    def sampled_loss(self, model: nn.Module, batch: Batch, uniforms: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per image of classes sampled from the model."""
        return sampled_cross_entropy(_logits(model, batch[0]), uniforms.flatten())

    @contextmanager
    def refreshed(self, model: nn.Module) -> Iterator[None]:
        """Context manager: BatchNorm has statistics of the present parameters; the old ones are restored.

        The running statistics of training belong to earlier values of y. Here they are means over training
        batches whose order and augmentation are used for nothing else and are the same at every call, so
        that neither an evaluation nor later training steps depend on when evaluations take place. Those of
        the last two sets of parameters, usually x and y, are cached: the evaluation after the last step needs
        them twice.

        Args:
            model: Model in eval mode; one without BatchNorm is not changed.
        """
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        buffers = [buffer for layer in layers for buffer in layer.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        try:
            self._refresh(model, buffers)
            yield
        finally:
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)

    def _refresh(self, model: nn.Module, buffers: list[Tensor]) -> None:
        """Put the statistics of the parameters into the buffers of BatchNorm, computed or remembered."""
        parameters = [parameter.detach() for parameter in model.parameters()]
        for known, values in self._remembered:
            if all(map(torch.equal, known, parameters)):
                for buffer, value in zip(buffers, values, strict=True):
                    buffer.copy_(value)
                return
        batches = (self._augmented(self._refresh_order, n) for n in range(self._config.refresh_batches))
        refresh_batch_norm(model, batches, forward=lambda batch: _logits(model, batch[0]))
        if buffers and not any(hasattr(parameter, "placements") for parameter in parameters):  # not sharded
            latest = [p.clone() for p in parameters], [buffer.clone() for buffer in buffers]
            self._remembered = [*self._remembered[-1:], latest]

    def note(self, steps: int) -> None:
        """Return nothing."""

    def evaluate(self, model: nn.Module, *, full: bool, processes: Processes = ALONE) -> dict[str, float]:
        """Return the mean loss (nats per image) and the accuracy on the held-out images."""
        images = len(self._held_out)
        count = images if full else min(images, self._config.eval_images)
        chosen = self._held_out[np.arange(count) * images // count]
        return self._measured(model, self._training, chosen, processes)

    def test(self, model: nn.Module, *, processes: Processes = ALONE) -> dict[str, float]:
        """Return "test_loss" and "test_accuracy"; nothing if there is no test set."""
        if self._test is None:
            return {}
        measured = self._measured(model, self._test, np.arange(len(self._test.labels)), processes)
        return {f"test_{name}": value for name, value in measured.items()}

    @torch.no_grad()
    def _measured(
        self, model: nn.Module, source: Source, images: NDArray[np.int64], processes: Processes
    ) -> dict[str, float]:
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        parts = list(processes.parts(len(images), _EVALUATION_BATCH))
        for number, (rows, counted) in enumerate(parts):
            upcoming = (images[later] for later, _ in parts[number + 1 : number + 1 + _AHEAD])
            pixels = source.plain(images[rows], upcoming)
            inputs, labels = self._batch(source, pixels, images[rows])
            logits = _logits(model, inputs).double()
            losses = F.cross_entropy(logits, labels, reduction="none")
            hits = (logits.argmax(dim=-1) == labels).double()
            totals += torch.stack((losses, hits))[:, :counted].sum(dim=1)
        loss, accuracy = (processes.sum(totals) / len(images)).tolist()
        return {"loss": loss, "accuracy": accuracy}

    def sample(self, model: nn.Module) -> None:
        """Return nothing: a classifier has nothing to show."""
