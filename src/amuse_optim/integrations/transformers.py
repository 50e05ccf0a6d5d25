"""transformers' Trainer, and the trainers that inherit it, such as TRL's.

The Trainer evaluates in `optimizer.eval()`, trains in `optimizer.train()`, and saves in whichever mode is on.
So the optimizer is put into eval mode where a save may follow, at the end of steps and epochs, and into train
mode where a step begins. What is saved in eval mode is x in the model's file and y in the optimizer's.
"""

import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amuse_optim.edits import accept_weights
from amuse_optim.optimizer import AMUSE, unwrapped
from amuse_optim.options import ANYTIME, OPTIONS, complete_group
from amuse_optim.param_groups import Decaying, Override, param_groups
from amuse_optim.schedule import LENGTHS

_LENGTHS = (*LENGTHS, "total_steps")


class TrainerAMUSE(AMUSE):
    """`AMUSE` as `AMUSEFactory` makes it: it waits for `AMUSECallback`, which knows the number of steps.

    It begins in eval mode, where its state has every tensor that a checkpoint of either mode has:
    `torch.distributed.checkpoint` reads no others.

    Args:
        groups: The parameter groups of the model, as `param_groups(model)` makes them.
        options: Those of `AMUSE`. Without `total_steps`, fractions are of the Trainer's number of steps, and
            without `warmup_steps` those of TrainingArguments are taken.
    """

    # Copies of the optimizer neither wait nor have lengths to find.
    waits = False
    open_lengths: tuple[dict[str, Any], ...] = ()

    def __init__(self, groups: Sequence[dict[str, Any]], **options: Any) -> None:
        if options.get("shard_state"):
            raise ValueError(
                "shard_state=True cannot be used with the Trainer, which asks one rank alone for the state "
                "dict: leave it out, process_group= alone divides the work too"
            )
        defaults = {name: OPTIONS[name].default for name in _LENGTHS} | {"warmup_steps": None} | options
        lengths = tuple({name: group.get(name, defaults[name]) for name in _LENGTHS} for group in groups)
        if any(map(_is_open, lengths)):
            super().__init__(
                [_without_lengths(group) for group in groups], warmup_steps=2, **_without_lengths(options)
            )
            self.open_lengths = lengths
        else:
            super().__init__(groups, **options)
        self.waits = True
        self.eval()

    def begin(self, arguments: TrainingArguments, max_steps: int) -> None:
        """Find the lengths that were left open, in groups that have taken no step, and allow steps.

        Args:
            arguments: The Trainer's arguments; their `warmup_steps` is the warm-up where none was given.
            max_steps: The number of steps that it is going to take.

        Raises:
            ValueError: If there is no warm-up, or a length does not fit.
        """
        _warn_of_what_is_not_read(arguments, self.param_groups)
        for lengths, group in zip(self.open_lengths, self.param_groups, strict=False):
            if group["t"] > 0:  # loaded
                continue
            if lengths["warmup_steps"] is None:
                lengths = lengths | {"warmup_steps": arguments.get_warmup_steps(max_steps)}
                if lengths["warmup_steps"] == 0:
                    raise ValueError(
                        "warmup_steps must be given, as steps or as a fraction of them all: "
                        '(AMUSEFactory, {"warmup_steps": 0.05}) or TrainingArguments(warmup_steps=0.05)'
                    )
            given = lengths["total_steps"]
            options = {name: group[name] for name in OPTIONS} | lengths | {"total_steps": given or max_steps}
            try:
                complete = complete_group({"params": group["params"], **options}, {})
            except ValueError as error:
                whole = f"total_steps={given}" if given else f"the Trainer's {max_steps} steps"
                raise ValueError(f"{error}. Fractions are of {whole}") from None
            group.update({name: complete[name] for name in _LENGTHS})
        self.waits = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state, options and mode; open lengths become the loaded ones, without a word."""
        names = _LENGTHS if self.open_lengths else ()
        before = [{name: group[name] for name in names} for group in self.param_groups]
        for saved, group in zip(state_dict.get("param_groups", ()), self.param_groups, strict=False):
            group.update({name: saved[name] for name in names if name in saved})
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            for group, lengths in zip(self.param_groups, before, strict=True):
                group.update(lengths)
            raise

    def _require_train_mode(self) -> None:
        if self.waits:
            raise RuntimeError(
                "AMUSEFactory needs AMUSECallback, without which the Trainer would save y, not the average "
                "x: give it callbacks=[AMUSECallback()]"
            )
        super()._require_train_mode()


class AMUSEFactory:
    """Makes `AMUSE` for the Trainer's model, with `param_groups(model)`.

    Pass it as `Trainer(optimizer_cls_and_kwargs=(AMUSEFactory, {...}))`, with `AMUSECallback` beside it. The
    dict holds what `param_groups` takes (matrices, auxiliary, overrides, decaying) and all options of
    `AMUSE`; with `"anytime": True` what is not given is that of `AMUSE.anytime` and its groups. Of
    TrainingArguments only `warmup_steps` is read, if the dict has none; a warning says so where its
    `learning_rate` or `weight_decay` were set to other values than those that train.

    Example:
        >>> import torch
        >>> from amuse_optim.integrations.transformers import AMUSEFactory
        >>> optimizer = AMUSEFactory()(torch.nn.Linear(4, 2), lr=0.02, warmup_steps=0.1)
        >>> optimizer.param_groups[0]["lr"]
        0.02
    """

    def __call__(
        self,
        model: nn.Module,
        arguments: TrainingArguments | None = None,
        *,
        matrices: str | None = None,
        auxiliary: str = "adamw",
        overrides: Sequence[Override] = (),
        decaying: Decaying | None = None,
        anytime: bool = False,
        **options: Any,
    ) -> TrainerAMUSE:
        """The optimizer of a model; the Trainer calls this.

        Args:
            model: The model to be trained.
            arguments: Not read; axolotl gives those of its trainer to every factory.
            matrices: Direction of the hidden matrices, as in `param_groups`; None means "muon", with
                `anytime` "normuon".
            auxiliary: Direction of all other parameters, as in `param_groups`.
            overrides: Pairs (pattern of names, direction or options) that change this, as in `param_groups`.
            decaying: What weight decay acts on, as in `param_groups`; None means "all", with `anytime`
                "matrices".
            anytime: Whether options that are not given are those of `AMUSE.anytime` instead of the published
                ones.
            options: Those of `AMUSE`. Lengths may be fractions of the Trainer's number of steps.

        Raises:
            ValueError: As `param_groups` and `AMUSE`.
            TypeError: As `AMUSE`.
        """
        groups = param_groups(
            model,
            matrices=matrices or ("normuon" if anytime else "muon"),
            auxiliary=auxiliary,
            overrides=overrides,
            decaying=decaying or ("matrices" if anytime else "all"),
        )
        return TrainerAMUSE(groups, **{**(ANYTIME if anytime else {}), **options})


class AMUSECallback(TrainerCallback):
    """Makes every evaluation and every save of the Trainer hold the average x, and every training step y.

    For an `AMUSE` of `AMUSEFactory`, or one that was passed as `optimizers=(optimizer, None)`. Put it last in
    `callbacks`, so that it sees what the others decide.
    """

    # Whether the Trainer was given a scheduler, and so makes none itself.
    scheduler_given = False

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note whether there is a scheduler already."""
        self.scheduler_given = kwargs["lr_scheduler"] is not None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a schedule that was not meant, and find the lengths that are fractions.

        Raises:
            ValueError: If the Trainer's own scheduler changes the learning rate, or the warm-up is missing.
            TypeError: If the Trainer's optimizer is not `AMUSE`.
        """
        amuse = unwrapped(kwargs["optimizer"])
        kind = SchedulerType(args.lr_scheduler_type)
        if kind != SchedulerType.CONSTANT and not self.scheduler_given:
            raise ValueError(
                f"lr_scheduler_type must be 'constant', got {kind.value!r}: AMUSE warms up by itself and "
                'needs no decay. Set TrainingArguments(lr_scheduler_type="constant"); a scheduler of your '
                "own goes into Trainer(optimizers=)"
            )
        if args.enable_jit_checkpoint:
            warnings.warn(
                "enable_jit_checkpoint saves where no callback can put x in place: that checkpoint resumes "
                "exactly, but its weights are y, where gradients are taken",
                stacklevel=2,
            )
        if isinstance(amuse, TrainerAMUSE):
            amuse.begin(args, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put y back; not every trainer that inherits does it."""
        unwrapped(kwargs["optimizer"]).train()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put x in place if an evaluation or a save follows."""
        if control.should_evaluate or control.should_save:
            unwrapped(kwargs["optimizer"]).eval()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put x in place, also for what follows the last step: the best model may be loaded over it."""
        unwrapped(kwargs["optimizer"]).eval()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so if the save was not foreseen."""
        if unwrapped(kwargs["optimizer"]).mode == "train":
            warnings.warn(
                f"the weights in checkpoint-{state.global_step} are y, where gradients are taken, not the "
                "average x: another callback asked for it after AMUSECallback had looked. Put AMUSECallback "
                "last in callbacks=",
                stacklevel=2,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the best model where the Trainer loaded it, as it would with any optimizer."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            accept_weights(kwargs["optimizer"])


def _warn_of_what_is_not_read(arguments: TrainingArguments, groups: Sequence[dict[str, Any]]) -> None:
    """Warn where TrainingArguments were told other values than those that train."""
    defaults = {field.name: field.default for field in fields(arguments)}
    for setting, option in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
        given, used = getattr(arguments, setting), sorted({float(group[option]) for group in groups})
        if given not in (defaults[setting], *used):
            warnings.warn(
                f"TrainingArguments({setting}={given!r}) is not read, AMUSE trains with {option}="
                f"{', '.join(map(str, used))}: say (AMUSEFactory, {{{option!r}: {given!r}}}), or drop it",
                stacklevel=2,
            )


def _is_open(lengths: dict[str, Any]) -> bool:
    """Whether lengths of a group cannot be told before the number of steps is known."""
    fractions = any(isinstance(length, float) for length in lengths.values())
    return lengths["warmup_steps"] is None or (fractions and lengths["total_steps"] is None)


def _without_lengths(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _LENGTHS}
