"""Next-token prediction."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from amuse_lab.config import TaskConfig
from amuse_lab.errors import require
from amuse_lab.parallel import ALONE, Processes
from amuse_lab.protocols import Batch, Task
from amuse_lab.tasks.lm.generate import generate
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_lab.tasks.lm.text import Text, check_text, vocabulary_of
from amuse_lab.tasks.sampling import sampled_cross_entropy

_EVALUATION_BATCH = 32  # windows; bounds memory, changes no result beyond rounding


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(TaskConfig):
    """A language model.

    Attributes:
        model: Size and shape of the decoder.
        data: A text that a package carries, in bytes or with a tokenizer, such as "shakespeare" and
            "shakespeare-gpt2"; or what `amuse-lab prepare` has tokenized: the name of a folder in the data
            root, or a path.
        batch: Sequences per step over all processes, each as long as the model's context.
        eval_windows: Sequences of the validation text that evaluations during training use, evenly spread
            over it and always the same; the final evaluation uses all of it.
        eval_left_out: Not those that they would use with this many `eval_windows`: 1,024 here, and an
            evaluation sees nothing of what one with 1,024 there and 0 here has seen.
        prompt: What the sample starts with.
        sample_length: Tokens to sample after it.
        temperature: Divisor of the logits of the sample's tokens; below 1 likely ones are drawn more often.
    """

    name: ClassVar[str] = "lm"
    free: ClassVar[frozenset[str]] = frozenset(
        ("eval_windows", "eval_left_out", "prompt", "sample_length", "temperature")
    )

    model: ModelConfig
    eval_windows: int = 256
    eval_left_out: int = 0
    prompt: str = "HAMLET\n"
    sample_length: int = 400
    temperature: float = 0.8

    def __post_init__(self) -> None:
        for name in ("batch", "eval_windows", "sample_length"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.eval_left_out >= 0, "eval_left_out", "at least 0", self.eval_left_out)
        require(self.prompt != "", "prompt", "at least one character", self.prompt)
        require(0 < self.temperature < math.inf, "temperature", "positive and finite", self.temperature)
        require(self.model.vocabulary >= 256, "vocabulary", "at least 256", self.model.vocabulary)

    def check(self, steps: int) -> None:
        """Check that the text is there."""
        check_text(self.data, steps * self.batch * self.model.context + 1)

    def fitted(self, default: Self) -> Self:
        """Return the config with the vocabulary of other text than the recipe's, unless one is set."""
        if self.data == default.data or self.model.vocabulary != default.model.vocabulary:
            return self
        vocabulary = vocabulary_of(self.data)
        return self if vocabulary is None else replace(self, model=replace(self.model, vocabulary=vocabulary))

    def reduced(self) -> Self:
        """Return a model of 0.1 M parameters on the bytes of Shakespeare's plays."""
        small = replace(
            self.model, n_embd=64, n_head=2, n_layer=2, context=64, vocabulary=256, mlp_multiple=32
        )
        return replace(self, model=small, data="shakespeare", batch=8, eval_windows=16, sample_length=40)

    def build_model(self) -> Llama:
        """Build the untrained decoder."""
        return Llama(self.model)

    def build(self, *, seed: int, device: torch.device) -> Task:
        """Open and check the text."""
        text = Text(
            self.data,
            vocabulary=self.model.vocabulary,
            context=self.model.context,
            batch=self.batch,
            seed=seed,
        )
        return LanguageModelTask(self, text, seed=seed, device=device)


def flops_per_token(model: ModelConfig) -> float:
    """Count the floating-point operations of forward and backward for one token of a full context.

    Six for each entry of the matrices (the embedding is looked up, the head multiplied), and 12 n_embd times
    the context for the attention of each block.

    References:
        arXiv 2204.02311, appendix B.
    """
    block = 4 * model.n_embd**2 + 3 * model.n_embd * model.mlp_width
    matrices = model.n_layer * block + model.n_embd * model.vocabulary
    return 6.0 * matrices + 12.0 * model.n_layer * model.n_embd * model.context


class LanguageModelTask:
    """The task over an open text.

    Args:
        config: Settings of the task.
        text: What to train and to measure on.
        seed: Seed of the text sample.
        device: Device that batches are put on.
    """

    unit = "tokens"
    measure = "bits_per_byte"
    summarized_as = "bits_per_byte"

    def __init__(self, config: LanguageModelConfig, text: Text, *, seed: int, device: torch.device) -> None:
        self._config = config
        self._text = text
        self._seed = seed
        self._device = device
        self.batch_size = config.batch
        self.units_per_step = config.batch * config.model.context
        self.flops_per_unit = flops_per_token(config.model)
        self.fingerprint = text.fingerprint

    def note(self, steps: int) -> str | None:
        """Say so if the run reads the training text more than once."""
        sequences = self._text.sequences
        times = steps * self.batch_size / sequences
        if times <= 1:
            return None
        tokens = sequences * self._config.model.context
        return f"the training text has {tokens:,} tokens: {steps:,} steps read it {times:.1f} times"

    def _inputs_and_targets(self, windows: Tensor) -> Batch:
        windows = windows.to(self._device, torch.long)
        return windows[:, :-1], windows[:, 1:]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Return windows of a step and what follows each of their tokens."""
        return self._inputs_and_targets(self._text.batch(step, rows))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per token."""
        inputs, targets = batch
        loss: Tensor = model(inputs, targets)
        return loss

    def sampled_loss(self, model: nn.Module, batch: Batch, uniforms: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token of tokens sampled from the model."""
        return sampled_cross_entropy(model(batch[0]).flatten(0, 1).float(), uniforms.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, full: bool, processes: Processes = ALONE) -> dict[str, float]:
        """Return the mean loss (nats per token) on validation text and the same in bits per byte."""
        config, text = self._config, self._text
        numbers = text.validation() if full else text.validation(config.eval_windows, config.eval_left_out)
        count = len(numbers)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for rows, counted in processes.parts(count, _EVALUATION_BATCH):
            windows = text.validation_windows(numbers[rows])
            total += self.loss(model, self._inputs_and_targets(windows)).double() * counted
        loss = processes.sum(total).item() / count
        return {"loss": loss, "bits_per_byte": text.bits_per_byte(loss)}

    def refreshed(self, model: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing: the model is its parameters."""
        return nullcontext()

    def test(self, model: nn.Module, *, processes: Processes = ALONE) -> dict[str, float]:  # noqa: ARG002
        """Return nothing: there is no test set."""
        return {}

    def sample(self, model: nn.Module) -> str:
        """Continue the prompt."""
        prompt = torch.tensor(self._text.encode(self._config.prompt), device=self._device)
        tokens = generate(
            cast(Llama, model),
            prompt,
            length=self._config.sample_length,
            temperature=self._config.temperature,
            generator=torch.Generator().manual_seed(self._seed),
        )
        return self._text.decode(tokens.tolist())
