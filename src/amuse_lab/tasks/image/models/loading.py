"""Starting from the weights of another run, or from timm's."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.image.models.config import HEAD

_SHOWN = 4
_PRETRAINING_ONLY = ("decoder_", "mask_token")  # of masked autoencoders


@torch.no_grad()
def load_weights(model: nn.Module, path: Path, *, new_head: bool) -> None:
    """Fill a model with the weights and statistics of a file, all of them or none.

    The decoder and the mask token of a masked autoencoder are ignored.

    Args:
        model: Model to fill, changed in place; its parameters keep their dtypes.
        path: Path of a safetensors file with the model's parameter names, which for a ViT are timm's.
        new_head: Whether the classifier is left as it is, and the file's classifier, if any, is ignored.

    Raises:
        DataError: If the file cannot be read.
        ConfigError: If names or shapes differ from the model's.
    """
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"init_from: cannot read {path} as safetensors: {error}") from error

    def counts(name: str) -> bool:
        return not (new_head and name.startswith(f"{HEAD}.")) and not name.startswith(_PRETRAINING_ONLY)

    wanted = {name: tensor for name, tensor in model.state_dict().items() if counts(name)}
    given = {name: tensor for name, tensor in saved.items() if counts(name)}
    differences = [
        f"{name} is {tuple(given[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    differences += [f"{name} is missing there" for name in wanted if name not in given]
    differences += [f"{name} is unknown here" for name in given if name not in wanted]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        about_head = any(difference.startswith(f"{HEAD}.") for difference in differences)
        hint = "; --task.new-head starts the classifier anew" if about_head else ""
        raise ConfigError(
            f"init_from must be weights of this model, but in {path} "
            f"{'; '.join(differences[:_SHOWN])}{more}{hint}"
        )
    for name, tensor in wanted.items():
        tensor.copy_(given[name])
