"""NorMuon: Muon with polar factors whose rows are normalized over time (arXiv 2510.05491)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from amuse_optim.buckets import Bucket
from amuse_optim.checks import Option, fraction
from amuse_optim.matrices import layout_of, update_scale
from amuse_optim.schedule import Number
from amuse_optim.sharding import store_whole_, whole

from .base import Shape
from .muon import Matrices, Muon


class NorMuon(Muon):
    r"""d = f O', O' = O / (sqrt(v) + eps), v <- b v + (1 - b) mean over columns of O^2, without correction.

    O is the polar factor as Muon computes it; v has one number for every row of every matrix, and b is
    `row_beta2`. The factor f of each matrix brings O' to a root mean square of exactly 0.2 with
    `scale="match_rms"`, and to the Frobenius norm of scale * O with "spectral". Zero maps to zero.
    """

    name = "normuon"
    options: ClassVar[Mapping[str, Option]] = {**Muon.options, "row_beta2": Option(0.95, fraction)}

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """The momentum, and v with an entry for every row of the matrices."""
        return super().state_shapes(group, shape) | {"row_exp_avg_sq": layout_of(group, shape).row_shape}

    def finish(self, factors: Tensor, pieces: Sequence[Matrices], bucket: Bucket) -> tuple[Tensor, Number]:
        """Normalize the rows and give every matrix its size."""
        group = bucket.group
        _, rows, cols = factors.shape
        factors = factors.to(bucket.dtype)
        slots = {piece.slot.index: piece.slot for piece in pieces}
        kept = {index: whole(slot.state["row_exp_avg_sq"]) for index, slot in slots.items()}
        mine = [
            kept[piece.slot.index].view(-1)[piece.place.row :][: piece.place.entries // cols]
            for piece in pieces
        ]
        v = torch.cat(mine).to(bucket.dtype).view(-1, rows)
        v.lerp_(factors.square().mean(-1), 1.0 - group["row_beta2"])
        torch._foreach_copy_(mine, v.view(-1).split([len(part) for part in mine]))
        for index, slot in slots.items():
            store_whole_(slot.state["row_exp_avg_sq"], kept[index])

        normalized = factors / (v.sqrt() + group["eps"]).unsqueeze(-1)
        norms = torch.linalg.vector_norm(normalized, dim=(-2, -1), keepdim=True)
        if group["scale"] == "match_rms":
            wanted: Number = 0.2 * (rows * cols) ** 0.5
        else:
            sizes = torch.linalg.vector_norm(factors, dim=(-2, -1), keepdim=True)
            wanted = update_scale(rows, cols, "spectral") * sizes
        return normalized.mul_(torch.where(norms > 0, wanted / norms, 0.0)), 1.0
