"""AdamW's direction (arXiv 1711.05101), by default without a first moment."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Chunk
from amuse_optim.checks import Option, fraction, number
from amuse_optim.schedule import Number

from .base import ElementwiseDirection, Shape

_LEAST = torch.finfo(torch.float32).tiny  # below it eps would vanish beside a second moment of 0


class AdamW(ElementwiseDirection):
    r"""d = e_hat / (sqrt(v_hat) + eps); e_hat is g without a first moment.

    v <- b2 v + (1 - b2) g^2, v_hat = v / k with k = 1 - b2^s; e <- b e + (1 - b) g, e_hat = e / (1 - b^s),
    where s counts the parameter's own gradients, b2 is `beta2` and b `auxiliary_momentum`.
    """

    name = "adamw"
    options: ClassVar[Mapping[str, Option]] = {
        "beta2": Option(0.999, fraction),
        "eps": Option(
            1e-10, number(f"at least {_LEAST:.3g}, as float32 holds it", lambda value: value >= _LEAST)
        ),
        "auxiliary_momentum": Option(0.0, fraction),
    }

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """The second moment v and, with `auxiliary_momentum`, the first, e; the parameter's shape."""
        return {"exp_avg_sq": shape} | ({"exp_avg": shape} if group["auxiliary_momentum"] > 0 else {})

    def update(self, chunk: Chunk) -> tuple[Tensors, Number]:
        """As d = [e / (sqrt(v) + sqrt(k) eps)] sqrt(k) / (1 - b^s), since the corrections are numbers."""
        group, gradients, v = chunk.group, chunk.read("gradient"), chunk.read("exp_avg_sq")
        torch._foreach_mul_(v, group["beta2"])
        torch._foreach_addcmul_(v, gradients, gradients, 1.0 - group["beta2"])
        root = (1.0 - group["beta2"] ** chunk.step) ** 0.5
        denominators = torch._foreach_sqrt(v)
        chunk.write("exp_avg_sq", v)
        if isinstance(root, Tensor):  # adding one to a list would wait for the device, dividing does not
            torch._foreach_div_(denominators, root)
            root = torch.ones_like(root)
            torch._foreach_add_(denominators, group["eps"])
        else:
            torch._foreach_add_(denominators, root * group["eps"])
        if "exp_avg" not in chunk:
            return torch._foreach_div(gradients, denominators), root
        e, momentum = chunk.read("exp_avg"), group["auxiliary_momentum"]
        torch._foreach_lerp_(e, gradients, 1.0 - momentum)
        update = torch._foreach_div(e, denominators)
        chunk.write("exp_avg", e)
        return update, root / (1.0 - momentum**chunk.step)
