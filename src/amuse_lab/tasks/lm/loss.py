"""Cross-entropy of a large vocabulary, without the logits of all tokens at once."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor

CHUNK_ENTRIES = 2**27
"""Logits of one chunk: 512 MiB in float32."""


def head_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `-log softmax(hidden @ weight.T)[target]`, in at least float32.

    Up to `CHUNK_ENTRIES` logits are made at once and given to `torch.nn.functional.cross_entropy`; more than
    that are made chunk by chunk, see `chunked_cross_entropy`.

    Args:
        hidden: What the output head sees, shape (..., width).
        weight: The head's matrix, shape (vocabulary, width).
        targets: The right tokens, shape (...), int64, each in [0, vocabulary).

    Returns:
        The loss in nats per token, a scalar.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if targets.numel() * weight.shape[0] <= CHUNK_ENTRIES:
        logits = F.linear(hidden, weight)
        return F.cross_entropy(logits.to(_at_least_float32(logits.dtype)), targets)
    return chunked_cross_entropy(hidden, weight, targets, chunk=CHUNK_ENTRIES // weight.shape[0])


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
    """The same with the logits of `chunk` tokens at a time, and their gradients taken while they are there.

    With N tokens in all and the head W: for a chunk H, its softmax P and the one-hot rows E of its targets

    .. code-block:: text

        dL/dH = (P - E) W / N            dL/dW = sum over chunks of (P - E)^T H / N

    so that nothing is computed twice: three products, as without chunks. The products are in autocast's dtype
    where that is on, everything else in at least float32.

    Args:
        hidden: Input of the head, shape (tokens, width).
        weight: Matrix of the head, shape (vocabulary, width).
        targets: Tokens to predict, shape (tokens,), int64.
        chunk: Tokens in a chunk, at least 1.

    Returns:
        The mean loss in nats per token, a scalar. It can be differentiated once.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]  # torch's `apply` has no types
            hidden, weight, targets, chunk, dtype, differentiate
        )
    return loss


class _Chunked(torch.autograd.Function):
    """The loss; its forward prepares the gradients of the sum over tokens, its backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        dtype: torch.dtype,
        differentiate: bool,
    ) -> Tensor:
        head = weight.to(dtype)
        to_weight = torch.zeros_like(weight, dtype=_at_least_float32(dtype)) if differentiate else None
        parts = [
            _one_chunk(rows.to(dtype), head, right.unsqueeze(1), to_weight)
            for rows, right in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        losses, to_hidden = zip(*parts, strict=True)
        if differentiate:
            ctx.save_for_backward(torch.cat(to_hidden).to(hidden.dtype), to_weight)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: the stored gradients would pass for constants
            raise RuntimeError("the chunked loss has no second derivatives: take a smaller batch")
        to_hidden, to_weight = ctx.saved_tensors
        scale = upstream / len(to_hidden)
        return to_hidden * scale, to_weight * scale, None, None, None, None


def _one_chunk(
    rows: Tensor, head: Tensor, targets: Tensor, to_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Losses (tokens, 1) and the gradient of their sum to the rows; the gradient to the head is added."""
    scores = torch.log_softmax(F.linear(rows, head), dim=1, dtype=_at_least_float32(head.dtype))
    right = scores.gather(1, targets)
    if to_weight is None:
        return -right, None
    gradient = scores.exp_().scatter_(1, targets, right.expm1()).to(head.dtype)
    if to_weight.dtype == head.dtype:
        to_weight.addmm_(gradient.T, rows)
    else:
        to_weight += gradient.T @ rows
    return -right, gradient @ head


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
