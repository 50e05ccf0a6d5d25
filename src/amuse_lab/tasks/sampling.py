"""The loss on labels that a model itself believes in."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor


def sampled_cross_entropy(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of labels sampled from the logits.

    Each is the first whose cumulative probability exceeds its number, so that the numbers decide alone which
    labels those are.

    Args:
        logits: Shape (labels, classes), float32. The labels count as given: no gradient goes through them.
        uniforms: Numbers in [0, 1), shape (labels,).
    """
    cumulative = logits.detach().softmax(dim=-1).cumsum(dim=-1)
    places = uniforms[:, None] * cumulative[:, -1:]  # the sum is 1 but for rounding
    return F.cross_entropy(logits, torch.searchsorted(cumulative, places, right=True).squeeze(-1))
