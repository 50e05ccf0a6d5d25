"""Generated tokens: a text without end for models to learn, made on the device in seconds.

Each token is drawn from one of three sources: 75 % from a table of the two tokens before it, 15 % from a
table of the one before, 10 % from all tokens. The tables are hash functions; what they hold, and what is
drawn from all, follows Zipf's law. So frequent contexts can be learned early and rare ones late, as in text,
and no length of training has seen everything.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amuse_lab.protocols import Task
from amuse_lab.tasks.lm.loader import evenly_spread
from amuse_lab.tasks.lm.task import LanguageModelConfig, LanguageModelTask

PAIRS, SINGLES = 0.75, 0.9  # up to where a uniform number chooses the first source, and the second
CHOICES = 8  # tokens that a context leads to, each half as likely as the one before
STREAMS_FOR_VALIDATION = 8


def _hashed(keys: Tensor) -> Tensor:
    """Numbers in [0, 1) that look drawn at random and are a function of the keys, below 2^31."""
    for factor in (1_103_515_245, 739_982_445):
        keys = (keys * factor + 12_345) % 2**31
        keys = keys ^ (keys >> 15)
    return keys.double() / 2**31


@lru_cache(maxsize=1)  # runs that follow each other share them
def generate(streams: int, length: int, vocabulary: int, *, seed: int, device: torch.device) -> Tensor:
    """Draw independent streams of tokens.

    Args:
        streams: How many.
        length: Tokens of each.
        vocabulary: How many different tokens there are.
        seed: Of the numbers that are drawn; the tables are always the same.
        device: Where they are drawn.

    Returns:
        Shape (streams, length), int32.
    """
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.empty(length, streams, dtype=torch.int32, device=device)
    before = last = torch.zeros(streams, dtype=torch.long, device=device)
    for place in tokens:
        source, choice, free = torch.rand(3, streams, generator=generator, device=device)
        rank = (-torch.log2(choice + 1e-9)).long().clamp_(max=CHOICES - 1)
        context = torch.where(source < PAIRS, (before * vocabulary + last) % 2**27, 2**27 + last)
        number = torch.where(source < SINGLES, _hashed(context * CHOICES + rank), free.double())
        before, last = last, (vocabulary**number).long().sub_(1).clamp_(0, vocabulary - 1)
        place.copy_(last)
    return tokens.mT.contiguous()


class GeneratedText:
    """Windows of generated tokens, as `amuse_lab.tasks.lm.text.Text` describes it.

    Args:
        tokens: From `generate`; the last `STREAMS_FOR_VALIDATION` streams are for validation.
        context: Targets per window.
        batch: Windows per step.
        seed: Decides which windows each step sees.
    """

    def __init__(self, tokens: Tensor, *, context: int, batch: int, seed: int) -> None:
        self._train, held_out = tokens[:-STREAMS_FOR_VALIDATION], tokens[-STREAMS_FOR_VALIDATION:]
        self._windows = held_out.unfold(1, context + 1, context).flatten(0, 1)
        self._context, self._batch, self._seed = context, batch, seed
        self.fingerprint = hashlib.sha256(str((tuple(tokens.shape), context)).encode()).hexdigest()

    def batch(self, step: int, rows: slice) -> Tensor:
        """Return windows of a training step, each from anywhere."""
        streams, length = self._train.shape
        random = np.random.default_rng((self._seed, step))
        starts = random.integers(length - self._context, size=self._batch)
        chosen = random.integers(streams, size=self._batch)
        places = torch.from_numpy(chosen * length + starts)[rows].to(self._train.device)
        within = torch.arange(self._context + 1, device=places.device)
        return self._train.flatten()[places[:, None] + within]

    def validation(self, limit: int | None = None, left_out: int = 0) -> NDArray[np.int64]:
        """Return the numbers of the windows of an evaluation."""
        return evenly_spread(len(self._windows), limit, left_out)

    def validation_windows(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return windows of the validation streams."""
        return self._windows[torch.from_numpy(numbers).to(self._windows.device)]

    def bits_per_byte(self, loss: float) -> float:
        """Convert nats to bits; a token counts as one byte, having no other size."""
        return loss / float(np.log(2))

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text, which stand for nothing here."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """Return the numbers of tokens."""
        return " ".join(map(str, tokens))


@dataclass(frozen=True)
class GeneratedConfig(LanguageModelConfig):
    """A language model on generated tokens.

    Attributes:
        streams: Of the text, those for validation included.
        length: Tokens of each stream.
    """

    name: ClassVar[str] = "generated"

    streams: int = 64
    length: int = 8192

    def check(self, steps: int) -> None:
        """Ask for nothing: the text is made when it is needed."""

    def build(self, *, seed: int, device: torch.device) -> Task:
        """Draw the tokens; they are the same for every seed, which decides in which order they are seen."""
        tokens = generate(self.streams, self.length, self.model.vocabulary, seed=0, device=device)
        text = GeneratedText(tokens, context=self.model.context, batch=self.batch, seed=seed)
        return LanguageModelTask(self, text, seed=seed, device=device)
