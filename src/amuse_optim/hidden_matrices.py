"""Hidden matrices: which parameters map one hidden vector to another, and how they are stored.

Two dimensions do not make a matrix. A table that is looked up, a vector for each head or expert, learned
tokens and the like have rows that nothing multiplies; they get the auxiliary direction.
"""

import re
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .module_tree import Owned, is_layer, stores_inputs_first

# Names of parameters whose rows are vectors of their own: embeddings and positions, learned tokens, latents
# and queries, biases and scales, decay rates of state-space models.
_VECTORS = re.compile(
    r"embed|token|position"
    r"|(^|_)(emb|pos|bias(es)?|table|latent|query|queries|prompt|probe|prototype|center|centroid|anchor|register"
    r"|codebook|codevector|slot|scale|gamma|beta|alpha|temperature|threshold|log|freq|decay)s?($|_|\d)|^(A|D|dt)$"
)
# Endings that say that something is a matrix after all, as in "prompts_visual_projection".
_MATRIX = re.compile(r"(^|_)(proj|projection|weight|kernel|matrix)$")
_LOOKED_UP = re.compile(r"embed|positional_?enc|relative(logits|pos|bias)|condconv|loss$", re.IGNORECASE)
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
_NORM = re.compile("norm", re.IGNORECASE)


def matrix_options(owned: Owned) -> dict[str, Any] | None:
    """How a parameter splits into hidden matrices, as options of its group.

    Args:
        owned: A parameter that belongs to no output head.

    Returns:
        The options; None for what is no matrix.
    """
    module, shape = owned.module, owned.parameter.shape
    if len(shape) < 2 or isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or _has_name(module, _NORM):
        return None
    if is_layer(module) and (shape[0] == 1 or shape[1:].numel() == 1):
        return None  # a vector written as a kernel or a matrix
    if isinstance(module, _ConvNd):
        return _of_convolution(module, shape)
    if is_layer(module):
        return {"transposed": True} if stores_inputs_first(module) else {}
    if isinstance(module, nn.MultiheadAttention) and owned.attribute == "in_proj_weight":
        return {"split_rows": (shape[0] // 3,) * 3}
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and owned.attribute.startswith(
        ("weight_ih", "weight_hh")
    ):
        gates = _GATES.get(module.mode if isinstance(module, nn.RNNBase) else type(module).__name__, 1)
        return {"split_rows": (shape[0] // gates,) * gates} if gates > 1 else {}
    return _of_free_parameter(owned)


def _of_convolution(module: _ConvNd, shape: tuple[int, ...]) -> dict[str, Any] | None:
    if module.groups > 1 and shape[1] == 1:
        return None  # depthwise
    options: dict[str, Any] = {"conv_groups": module.groups} if module.groups > 1 else {}
    return options | ({"transposed": True} if module.transposed else {})


def _of_free_parameter(owned: Owned) -> dict[str, Any] | None:
    """A parameter that a module holds beside torch's layers: what its name, its owner and its shape say."""
    module, attribute, shape = owned.module, owned.attribute, owned.parameter.shape
    named_matrix = _MATRIX.search(attribute) and "bias" not in attribute
    experts = re.search("expert|moe", f"{type(module).__name__}.{owned.name}", re.IGNORECASE)
    if min(shape[-2:]) == 1 or (len(shape) > 2 and shape[0] == 1 and not experts):
        return None  # (1, tokens, width) and the like
    if _has_name(module, _LOOKED_UP) or (_VECTORS.search(attribute) and not named_matrix):
        return None
    if len(shape) == 2:
        return {}
    if not experts and shape[0] > max(shape[1:]):
        return {}  # a kernel (in, heads, width of a head)
    return {"stacked": True} | ({"transposed": True} if getattr(module, "is_transposed", False) else {})


def _has_name(module: nn.Module, pattern: re.Pattern[str]) -> bool:
    """Whether the name of its class matches; layers are what they are, whatever they are called."""
    return not is_layer(module) and pattern.search(type(module).__name__) is not None
