"""A Llama-style decoder: pre-norm RMSNorm, rotary positions, SwiGLU, causal attention, no biases.

The projections of attention into queries, keys and values are one matrix of 3n rows; the two branches of
SwiGLU are matrices of their own. An optimizer that works on whole matrices therefore sees the same ones as in
the published runs.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amuse_lab.errors import require
from amuse_lab.tasks.lm.loss import head_cross_entropy

INIT_STD = 0.02
NORM_EPS = 1e-5


@dataclass(frozen=True)
class ModelConfig:
    """Size and shape of the decoder.

    Attributes:
        n_embd: Width of the residual stream.
        n_head: Attention heads; divides n_embd into heads of an even width.
        n_layer: Number of blocks.
        context: Longest sequence, in tokens.
        vocabulary: Number of different tokens; 256 for bytes.
        mlp_multiple: The hidden width of SwiGLU is 8/3 n_embd, rounded up to a multiple of this.
        tied: Whether the output head is the embedding's own matrix.
        rope_base: Base of the rotary wavelengths.
        checkpointing: Whether training keeps only what enters each block and computes the rest again in the
            backward pass: a third more work, far less memory, the same gradients.
    """

    n_embd: int
    n_head: int
    n_layer: int
    context: int
    vocabulary: int = 256
    mlp_multiple: int = 256
    tied: bool = True
    rope_base: float = 10_000.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("n_embd", "n_head", "n_layer", "context", "vocabulary", "mlp_multiple"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        divides = self.n_embd % (2 * self.n_head) == 0
        require(divides, "n_embd", f"a multiple of 2 * n_head = {2 * self.n_head}", self.n_embd)
        require(1 < self.rope_base < math.inf, "rope_base", "a finite number above 1", self.rope_base)

    @property
    def mlp_width(self) -> int:
        """Hidden width of SwiGLU."""
        return math.ceil(8 * self.n_embd // 3 / self.mlp_multiple) * self.mlp_multiple


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rope_table(length: int, width: int, base: float) -> Tensor:
    """Tabulate the rotations `exp(i t base^(-2j / width))`.

    Args:
        length: Number of positions t.
        width: Width of a head; pair j is made of its components 2j and 2j + 1.
        base: Base of the power in this formula; a larger one turns all pairs but the first more slowly.

    Returns:
        Cosines and sines, shape (length, width / 2, 2), float32.
    """
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def rotate(heads: Tensor, table: Tensor) -> Tensor:
    """Rotate every pair of neighbouring components by the angle of its position, in at least float32.

    Args:
        heads: Shape (batch, time, ..., width).
        table: The first `time` rows of `rope_table`.

    Returns:
        The rotated heads, same shape and dtype.
    """
    wide = _at_least_float32(heads).unflatten(-1, (-1, 2))
    turns = table.view(table.shape[0], *(1,) * (heads.dim() - 3), -1, 2)
    if torch.compiler.is_compiling():  # inductor fuses real numbers alone
        turned = _multiply(wide, turns)
    else:  # one operation instead of seven
        turned = torch.view_as_real(torch.view_as_complex(wide) * torch.view_as_complex(turns))
    return turned.flatten(-2).type_as(heads)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """The complex product of pairs (real, imaginary) in the last dimension."""
    (a_real, a_imaginary), (b_real, b_imaginary) = a.unbind(-1), b.unbind(-1)
    return torch.stack(
        (a_real * b_real - a_imaginary * b_imaginary, a_real * b_imaginary + a_imaginary * b_real), dim=-1
    )


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)`, computed in at least float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        wide = _at_least_float32(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), NORM_EPS).type_as(x)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Mix positions: (batch, time, n_embd) to the same shape; the table is that of `Llama.rope`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))  # (batch, time, 3, head, width)
        turned, value = qkv.split((2, 1), dim=2)
        query, key = rotate(turned, table.view(torch.float32)).transpose(1, 3).unbind(2)
        value = value.squeeze(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return projected


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.mlp_width, bias=False)
        self.up = nn.Linear(config.n_embd, config.mlp_width, bias=False)
        self.projection = nn.Linear(config.mlp_width, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position: (batch, time, n_embd) to the same shape."""
        projected: Tensor = self.projection(F.silu(self.gate(x)) * self.up(x))
        return projected


class Block(nn.Module):
    """Attention, then SwiGLU, each added to the residual stream of its normalized input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.checkpointing = config.checkpointing
        self.attention_norm = RMSNorm(config.n_embd)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.n_embd)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Advance the residual stream by one block."""
        if self.checkpointing and torch.is_grad_enabled():
            # Inside the block, so that wrapping blocks (FSDP) keeps working; nothing in it is random.
            again: Tensor = checkpoint(self._advance, x, table, use_reentrant=False, preserve_rng_state=False)
            return again
        return self._advance(x, table)

    def _advance(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        advanced: Tensor = x + self.mlp(self.mlp_norm(x))
        return advanced


class Llama(nn.Module):
    """The decoder.

    Initialization: every matrix N(0, 0.02), the projections back into the residual stream
    N(0, 0.02 / sqrt(2 n_layer)), drawn from torch's global generator; norm weights are 1.

    Args:
        config: Size and shape of the model.

    Example:
        >>> model = Llama(ModelConfig(n_embd=64, n_head=2, n_layer=2, context=128))
        >>> model(torch.zeros(1, 16, dtype=torch.long)).shape
        torch.Size([1, 16, 256])
    """

    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocabulary, bias=False)
        table = rope_table(config.context, config.n_embd // config.n_head, config.rope_base)
        # As integers, which no `.to(torch.bfloat16)` and no mixed precision rounds.
        self.register_buffer("rope", table.view(torch.int32), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("projection.weight")
                nn.init.normal_(
                    parameter, std=INIT_STD / math.sqrt(2 * config.n_layer) if residual else INIT_STD
                )

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix, shape (vocabulary, n_embd); the embedding's where they are tied."""
        return (self.embedding if self.lm_head is None else self.lm_head).weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return what the output head sees: (batch, time) to (batch, time, n_embd)."""
        x = self.embedding(tokens)
        table = self.rope[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, table)
        normalized: Tensor = self.norm(x)
        return normalized

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits of each next token, or the mean loss if targets are given.

        The loss is computed in here rather than from the logits outside, so that what wraps a model (DDP,
        FSDP, `torch.compile`) covers it, and so that the logits of a large batch never exist all at once.

        Args:
            tokens: Shape (batch, time), int64, time at most `context`.
            targets: The tokens that follow, same shape.

        Returns:
            Without targets the logits of the next token, shape (batch, time, vocabulary); with them the mean
            cross-entropy in nats per token, a scalar.
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return F.linear(hidden, self.head_weight)
        return head_cross_entropy(hidden, self.head_weight, targets)
