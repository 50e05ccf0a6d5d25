"""Which parameter gets what: the groups that published baselines divide a model into."""

from typing import Any, Literal

from torch import nn

from amuse_lab.errors import require
from amuse_optim import param_groups


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that takes gradients, once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def decay_split(
    model: nn.Module, weight_decay: float, *, lr_rest: float | None = None
) -> list[dict[str, Any]]:
    """Two groups: matrices decay; vectors and embeddings, with a head tied to one, do not.

    Args:
        model: Model whose trainable parameters are divided.
        weight_decay: Weight decay of the matrices that decay; all else gets 0.
        lr_rest: Learning rate of all that is no hidden matrix, in groups of its own; None makes none.
    """
    looked_up = {
        p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    groups: list[dict[str, Any]] = []
    if lr_rest is None:
        parts: list[tuple[list[nn.Parameter], dict[str, float]]] = [(trainable(model), {})]
    else:
        matrices, rest = routed(model)
        parts = [(matrices, {}), (rest, {"lr": lr_rest})]
    for parameters, options in parts:
        still = [p for p in parameters if p in looked_up or p.dim() < 2]
        decaying = [p for p in parameters if p not in looked_up and p.dim() >= 2]
        groups.append({"params": decaying, "weight_decay": weight_decay} | options)
        groups.append({"params": still, "weight_decay": 0.0} | options)
    return groups if lr_rest is None else [group for group in groups if group["params"]]


def thirds(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Overrides that divide each parameter that holds queries, keys and values into the three.

    Raises:
        ConfigError: If the model has none.
    """
    named = (each for group in param_groups(model) for each in group["params"])
    fused = [(name, len(p)) for name, p in named if name.endswith("qkv.weight")]
    require(bool(fused), "split_qkv", "False for a model without attention", True)
    return [(name, {"split_rows": (rows // 3,) * 3}) for name, rows in fused]


def routed(
    model: nn.Module, *, auxiliary: Literal["adamw", "sgd"] = "adamw"
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices and the rest, as AMUSE tells them apart."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for group in param_groups(model, auxiliary=auxiliary):
        (matrices if group["direction"] == "muon" else rest).extend(p for _, p in group["params"])
    return matrices, rest
