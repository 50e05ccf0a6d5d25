"""A callback for Lightning: the average x is evaluated, saved and left behind, y is trained."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:  # installed under its older name
    from pytorch_lightning.callbacks import Callback  # type: ignore[assignment]  # the same class, twice

from amuse_optim.optimizer import AMUSE, unwrapped
from amuse_optim.state import averaged_value

# By name, because lightning and pytorch_lightning have each its own classes.
_OTHER_AVERAGES = frozenset({"StochasticWeightAveraging", "WeightAveraging"})


class AMUSECallback(Callback):
    """Lightning callback for modules whose `configure_optimizers` returns an `AMUSE`, alone or among others.

    - Validation within `fit` runs at the average x, and so do the hooks around it; each training batch
      begins at y again, bit for bit. What training steps log is measured at y.
    - The weights in every checkpoint file are x, whenever it is written and whoever asks for it, so that
      monitored validation values are those of the file, and `load_from_checkpoint` gives x. More generally,
      `module.state_dict()` gives x while `fit` runs.
    - After `fit`, and after an exception, the module holds x; `validate`, `test`, `predict` then use it.
    - `fit(ckpt_path=...)` continues to the same bits: the optimizer's state is saved as in eval mode, where
      it holds y. The file needs the callback again. One that was saved without the callback can be continued.
    - Another `fit` without `ckpt_path` begins at x, with what `configure_optimizers` returns then.

    BatchNorm's running statistics belong to y: call `refresh_batch_norm` in `on_validation_start` of the
    module, where the parameters hold x. Sharded strategies (FSDP, DeepSpeed) have not been tried.

    Raises:
        ValueError: When `fit` begins, beside Lightning's own callbacks that average weights, or if none of
            the optimizers is an `AMUSE`.

    Example:
        >>> from amuse_optim.integrations.lightning import AMUSECallback
        >>> callbacks = [AMUSECallback()]  # for Trainer(callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._optimizers: list[AMUSE] = []
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Refuse other callbacks that average weights."""
        for callback in trainer.callbacks if stage == "fit" else ():
            if any(kind.__name__ in _OTHER_AVERAGES for kind in type(callback).__mro__):
                raise ValueError(
                    f"AMUSECallback must be the only callback that averages weights, got "
                    f"{type(callback).__name__} beside it: AMUSE's x is an average already, and the two "
                    "would overwrite each other's weights. Remove that callback"
                )

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Find the optimizers, and have `state_dict` of the module give x."""
        self._forget()
        self._optimizers = [amuse for amuse in map(_amuse_in, trainer.optimizers) if amuse is not None]
        if not self._optimizers:
            kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
            raise ValueError(
                f"configure_optimizers must return an AMUSE for AMUSECallback to work with, got {kinds}: "
                "return AMUSE(param_groups(self), ...), or remove the callback"
            )
        self._hook = pl_module.register_state_dict_post_hook(partial(_ship_average, self._optimizers))

    def on_train_batch_start(self, *_: Any) -> None:
        """Put y back, if x was shown."""
        for optimizer in self._optimizers:
            optimizer.train()

    def on_validation_start(self, *_: Any) -> None:
        """Show x until the next training batch."""
        for optimizer in self._optimizers:
            optimizer.eval()

    def on_train_end(self, *_: Any) -> None:
        """Leave x behind."""
        self.on_validation_start()

    def on_exception(self, *_: Any) -> None:
        """Leave x behind."""
        self.on_validation_start()

    def on_save_checkpoint(
        self,
        trainer: Any,
        pl_module: nn.Module,
        checkpoint: dict[str, Any],
    ) -> None:
        """Save the optimizers as in eval mode, in which their state holds y and the module x."""
        saved = checkpoint["optimizer_states"]
        for index, optimizer in enumerate(map(_amuse_in, trainer.optimizers)):
            if optimizer is not None and optimizer.mode == "train":
                saved[index] = _in_eval_mode(saved[index], optimizer)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Forget the optimizers, which the next `fit` makes anew."""
        self._forget()

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._optimizers = None, []


def _amuse_in(optimizer: torch.optim.Optimizer) -> AMUSE | None:
    try:
        return unwrapped(optimizer)
    except TypeError:
        return None


def _in_eval_mode(state_dict: Mapping[str, Any], optimizer: AMUSE) -> dict[str, Any]:
    """The state dict of an optimizer in train mode as it would be in eval mode; touches no weights."""
    groups = [{**group, "mode": "eval"} for group in state_dict["param_groups"]]
    indices = [index for group in groups for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        index: {**state_dict["state"][index], "y": parameter.detach().clone()}
        for index, parameter in zip(indices, parameters, strict=True)
    }
    return {**state_dict, "state": states, "param_groups": groups}


@torch.no_grad()
def _ship_average(
    optimizers: Sequence[AMUSE],
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    _: Mapping[str, Any],
) -> None:
    """Replace y by x in a state dict of the module: a hook for `register_state_dict_post_hook`.

    Raises:
        ValueError: If a parameter is not there under its own name.
    """
    states = {
        parameter: state
        for optimizer in optimizers
        if optimizer.mode == "train"
        for _, parameter, state in optimizer.members()
    }
    averages: dict[nn.Parameter, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter not in states:
            continue
        if prefix + name not in state_dict:
            raise ValueError(
                f"the module's state dict must hold {name!r}, which the optimizer trains: a hook seems to "
                "rename or drop it, and AMUSECallback cannot put the average in its place. Do so in "
                "on_save_checkpoint of the module"
            )
        if parameter not in averages:
            averages[parameter] = averaged_value(parameter, states[parameter]).to(parameter.dtype)
        if state_dict[prefix + name] is not parameter:  # as with keep_vars=True, which asks for itself
            state_dict[prefix + name] = averages[parameter]
