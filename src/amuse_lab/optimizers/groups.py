"""Which parameter gets what: the groups that published baselines divide a model into."""

from typing import Any, Literal

from torch import nn

from amuse_optim import param_groups


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that takes gradients, once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def decay_split(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; vectors and embeddings, with a head tied to one, do not."""
    looked_up = {
        p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    parameters = trainable(model)
    still = [p for p in parameters if p in looked_up or p.dim() < 2]
    decaying = [p for p in parameters if p not in looked_up and p.dim() >= 2]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]


def routed(
    model: nn.Module, *, auxiliary: Literal["adamw", "sgd"] = "adamw"
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices and the rest, as AMUSE tells them apart."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for group in param_groups(model, auxiliary=auxiliary):
        (matrices if group["direction"] == "muon" else rest).extend(p for _, p in group["params"])
    return matrices, rest
