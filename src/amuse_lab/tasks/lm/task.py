"""Next-byte prediction."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn

from amuse_lab.config import TaskConfig
from amuse_lab.errors import require, unknown
from amuse_lab.protocols import Batch, Task
from amuse_lab.tasks.lm.data import DATASETS, Corpus, training_windows, validation_windows
from amuse_lab.tasks.lm.generate import generate
from amuse_lab.tasks.lm.model import Llama, ModelConfig

_EVALUATION_BATCH = 32  # windows; bounds memory, changes no result beyond rounding


@dataclass(frozen=True)
class LanguageModelConfig(TaskConfig):
    """A byte-level language model.

    Attributes:
        model: Size and shape of the decoder.
        data: Name of the text, see `amuse-lab list`.
        batch: Sequences per step, each as long as the model's context.
        eval_windows: Sequences of the validation text that evaluations during training use, evenly spread
            over it and always the same; the final evaluation uses all of it.
        prompt: What the sample starts with.
        sample_length: Bytes to sample after it.
        temperature: Of the sample; below 1 prefers likely bytes.
    """

    name: ClassVar[str] = "lm"

    model: ModelConfig
    data: str
    batch: int
    eval_windows: int = 256
    prompt: str = "HAMLET\n"
    sample_length: int = 400
    temperature: float = 0.8

    def __post_init__(self) -> None:
        for name in ("batch", "eval_windows", "sample_length"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.prompt != "", "prompt", "at least one byte", self.prompt)
        require(0 < self.temperature < math.inf, "temperature", "positive and finite", self.temperature)
        require(self.model.vocabulary >= 256, "vocabulary", "at least 256 for bytes", self.model.vocabulary)
        if self.data not in DATASETS:
            raise unknown("data set", self.data, DATASETS)

    def build_model(self) -> Llama:
        """Build the untrained decoder."""
        return Llama(self.model)

    def build(self, *, seed: int, device: torch.device) -> Task:
        """Load and check the text."""
        corpus = Corpus.of(DATASETS[self.data].load())
        shortest = min(len(corpus.train), len(corpus.validation))
        context = self.model.context
        require(context < shortest, "context", f"shorter than each text, here {shortest} bytes", context)
        return LanguageModelTask(self, corpus, seed=seed, device=device)


class LanguageModelTask:
    """The task over a loaded text.

    Args:
        config: Its settings.
        corpus: The text.
        seed: Decides which windows each step sees, and the sample.
        device: Where batches go.
    """

    unit = "tokens"
    measure = "bits_per_byte"

    def __init__(
        self, config: LanguageModelConfig, corpus: Corpus, *, seed: int, device: torch.device
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._seed = seed
        self._device = device
        self.units_per_step = config.batch * config.model.context

    def _inputs_and_targets(self, windows: Tensor) -> Batch:
        windows = windows.to(self._device, torch.long)
        return windows[:, :-1], windows[:, 1:]

    def batch(self, step: int) -> Batch:
        """Return the windows of a step and what follows each of their tokens."""
        length = self._config.model.context + 1
        windows = training_windows(
            self._corpus.train, seed=self._seed, step=step, batch=self._config.batch, length=length
        )
        return self._inputs_and_targets(windows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per token."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, full: bool) -> dict[str, float]:
        """Return the mean loss (nats per token) on validation text and the same in bits per byte."""
        length = self._config.model.context + 1
        limit = None if full else self._config.eval_windows
        windows = validation_windows(self._corpus.validation, length=length, limit=limit)
        total = 0.0
        for start in range(0, len(windows), _EVALUATION_BATCH):
            chunk = windows[start : start + _EVALUATION_BATCH]
            total += self.loss(model, self._inputs_and_targets(chunk)).item() * len(chunk)
        loss = total / len(windows)
        return {"loss": loss, "bits_per_byte": loss / math.log(2)}

    def sample(self, model: nn.Module) -> str:
        """Continue the prompt."""
        prompt = torch.tensor(list(self._config.prompt.encode()), device=self._device)
        tokens = generate(
            cast(Llama, model),
            prompt,
            length=self._config.sample_length,
            temperature=self._config.temperature,
            generator=torch.Generator().manual_seed(self._seed),
        )
        return bytes(tokens.tolist()).decode(errors="replace")
