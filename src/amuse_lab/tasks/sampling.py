"""Cross-entropy on labels that are sampled from the model's own predictions."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads it by
from torch import Tensor


def sampled_cross_entropy(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of labels sampled from the logits.

    Each label is the first class whose cumulative probability exceeds the label's uniform number, so that
    equal numbers and logits give equal labels.

    Args:
        logits: Shape (labels, classes), float32. No gradient flows through the choice of the labels.
        uniforms: Numbers in [0, 1), shape (labels,).
    """
    cumulative = logits.detach().softmax(dim=-1).cumsum(dim=-1)
    places = uniforms[:, None] * cumulative[:, -1:]  # the sum is 1 but for rounding
    return F.cross_entropy(logits, torch.searchsorted(cumulative, places, right=True).squeeze(-1))
