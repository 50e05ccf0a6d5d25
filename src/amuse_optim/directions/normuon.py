"""NorMuon: Muon with polar factors whose rows are normalized over time (arXiv 2510.05491)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from amuse_optim.buckets import Bucket
from amuse_optim.checks import Option, fraction
from amuse_optim.matrices import layout_of, update_scale
from amuse_optim.schedule import Number

from .base import Shape
from .muon import Muon


class NorMuon(Muon):
    r"""d = f O', O' = O / (sqrt(v) + eps), v <- b v + (1 - b) mean over columns of O^2, without correction.

    O is the polar factor as Muon computes it; v has one number for every row of every matrix, and b is
    `row_beta2`. The factor f of each matrix brings O' to a root mean square of exactly 0.2 with
    `scale="match_rms"`, and to the Frobenius norm of scale * O with "spectral". Zero maps to zero.
    """

    name = "normuon"
    row_state = ("row_exp_avg_sq",)
    options: ClassVar[Mapping[str, Option]] = {**Muon.options, "row_beta2": Option(0.95, fraction)}

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """The momentum, and v with an entry for every row of the matrices."""
        return super().state_shapes(group, shape) | {"row_exp_avg_sq": layout_of(group, shape).row_shape}

    def scale(self, group: Mapping[str, Any], rows: int, cols: int) -> Number:
        """1: every matrix has a size of its own."""
        return 1.0

    def finish(self, factors: Tensor, row_state: Sequence[Tensor], bucket: Bucket) -> Tensor:
        """Normalize the rows and give every matrix its size."""
        group, (v,) = bucket.group, row_state
        _, rows, cols = factors.shape
        factors = factors.to(bucket.dtype)
        v.lerp_(factors.square().mean(-1), 1.0 - group["row_beta2"])
        normalized: Tensor = factors / (v.sqrt() + group["eps"]).unsqueeze(-1)
        norms = torch.linalg.vector_norm(normalized, dim=(-2, -1), keepdim=True)
        if group["scale"] == "match_rms":
            wanted: Number = 0.2 * (rows * cols) ** 0.5
        else:
            sizes = torch.linalg.vector_norm(factors, dim=(-2, -1), keepdim=True)
            wanted = update_scale(rows, cols, "spectral") * sizes
        normalized.mul_(torch.where(norms > 0, wanted / norms, 0.0))
        return normalized
