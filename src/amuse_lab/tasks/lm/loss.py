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
        The mean loss in nats per token, a scalar. It can be differentiated twice in reverse mode, by
        `torch.func` too.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]  # torch's `apply` has no types
            hidden, weight, targets, chunk, dtype, differentiate
        )[0]
    return loss


class _Chunked(torch.autograd.Function):
    """The loss, and the gradients of its sum over tokens, which are prepared while the logits are there.

    The backward pass of the loss scales the gradients. They are outputs, so that they can be differentiated
    again: the backward pass of theirs is `_second_derivatives`.
    """

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        dtype: torch.dtype,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        head = weight.to(dtype)
        to_weight = torch.zeros_like(weight, dtype=_at_least_float32(dtype)) if differentiate else None
        parts = [
            _one_chunk(rows.to(dtype), head, right.unsqueeze(1), to_weight)
            for rows, right in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        losses, to_hidden = zip(*parts, strict=True)
        loss = torch.cat(losses).mean()
        return loss, torch.cat(to_hidden).to(hidden.dtype) if differentiate else None, to_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, targets, ctx.chunk, _, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, targets, *output[1:])

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, along_hidden: Tensor | None, along_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, to_hidden, to_weight = ctx.saved_tensors
        found = [torch.zeros_like(hidden), torch.zeros_like(to_weight)]
        if upstream is not None:
            scale = upstream / len(hidden)
            found = [to_hidden * scale, to_weight * scale]
        if along_hidden is not None or along_weight is not None:
            along_hidden = torch.zeros_like(hidden) if along_hidden is None else along_hidden
            along_weight = torch.zeros_like(weight) if along_weight is None else along_weight
            second = _second_derivatives(hidden, weight, targets, along_hidden, along_weight, ctx.chunk)
            found = [one + other for one, other in zip(found, second, strict=True)]
        return *found, None, None, None, None


def _second_derivatives(
    hidden: Tensor, weight: Tensor, targets: Tensor, along_hidden: Tensor, along_weight: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The gradient of the directional derivative of the loss's sum over tokens along (A, B), in chunks.

    With C = A W^T + H B^T, the change of the logits along (A, B), the derivative is the sum of the entries of
    (P - E) * C. Its gradient in the logits is D = P * (C - row sums of P * C), so that

    .. code-block:: text

        to H: D W + (P - E) B            to W: D^T H + (P - E)^T A
    """
    wide = _at_least_float32(weight.dtype)
    head, turned = weight.to(wide), along_weight.to(wide)
    to_hidden: list[Tensor] = []
    to_weight = torch.zeros_like(head)
    for part, right, along in zip(
        hidden.split(chunk), targets.split(chunk), along_hidden.split(chunk), strict=True
    ):
        rows, along = part.to(wide), along.to(wide)
        share = F.linear(rows, head).softmax(1)
        change = F.linear(along, head) + F.linear(rows, turned)
        curved = share * (change - (share * change).sum(1, keepdim=True))
        wrong = share.scatter_add(1, right.unsqueeze(1), -torch.ones_like(share[:, :1]))
        to_hidden.append(curved @ head + wrong @ turned)
        to_weight = to_weight + curved.T @ rows + wrong.T @ along
    return torch.cat(to_hidden).to(hidden.dtype), to_weight.to(weight.dtype)


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
