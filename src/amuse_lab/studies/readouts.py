"""Where a model is evaluated, apart from where its gradients are taken: readouts.

"x" is what the optimizer ships; "y" where it takes gradients; "power K" a power average of z with kappa = K;
"line S" the point x + S (z - x), so that "line 1" is z.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amuse_lab.errors import require
from amuse_lab.optimizers.wrappers import restored
from amuse_lab.studies.posthoc import Snapshots
from amuse_lab.trainer import Trainer


def parsed(readout: str) -> tuple[str, float]:
    """Return the kind of a readout and its number; 0 for those that have none.

    Raises:
        ConfigError: If it is no readout.
    """
    kind, _, number = readout.partition(" ")
    try:
        value = float(number or 0)
    except ValueError:
        value = math.nan
    known = (kind in ("x", "y") and not number) or (kind == "power" and value >= 1)
    known = known or (kind == "line" and bool(number) and math.isfinite(value))
    require(known, "readouts", "x, y, power K with K >= 1, or line S", readout)
    return kind, value


class PowerAverages:
    r"""Averages of z kept beside an optimizer, whatever it does with averages of its own.

    .. code-block:: text

        a_t = a_{t-1} + c_t (z_t - a_{t-1}),    c_t = kappa / (t + kappa - 1)

    so a_1 = z_1, and kappa = 1 is the plain mean. Kept in float32 at least.

    Args:
        parameters: Parameters of the model that are trained.
        kappas: Values of kappa, each at least 1; an average is kept for each of them.

    References:
        arXiv 2312.02696 (power-function averages).
    """

    def __init__(self, parameters: Sequence[Tensor], kappas: Sequence[float]) -> None:
        self._step = 0
        self.averages: dict[float, list[Tensor]] = {
            kappa: [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]
            for kappa in kappas
        }

    @torch.no_grad()
    def update(self, z: Sequence[Tensor]) -> None:
        """Average the newest z in."""
        self._step += 1
        for kappa, averages in self.averages.items():
            weight = kappa / (self._step + kappa - 1)
            values = [value.to(average.dtype) for value, average in zip(z, averages, strict=True)]
            torch._foreach_lerp_(averages, values, weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, which are in use, and the step."""
        return {"step": self._step, "averages": [[kappa, list(a)] for kappa, a in self.averages.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` of the same kappas."""
        self._step = state["step"]
        for kappa, saved in state["averages"]:
            for average, value in zip(self.averages[kappa], saved, strict=True):
                average.copy_(value)


class Readouts:
    """Keeps what the readouts of a run need, and evaluates them.

    Args:
        trainer: Trainer of the run whose model is evaluated.
        readouts: The readouts to evaluate, such as "x" and "power 20".
        kept: Kappas whose averages are kept; "power K" of others is rebuilt from snapshots of these.
    """

    def __init__(self, trainer: Trainer, readouts: Sequence[str], kept: Sequence[float]) -> None:
        self._trainer = trainer
        self._readouts = {readout: parsed(readout) for readout in readouts}
        self._parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        powers = {value for kind, value in self._readouts.values() if kind == "power"}
        rebuilt = powers - set(kept)
        self._averages = PowerAverages(self._parameters, sorted(set(kept) if rebuilt else powers))
        self._snapshots = Snapshots() if rebuilt else None
        self._residual: float | None = None  # of the average that was rebuilt last

    def update(self) -> None:
        """Average the trainer's newest step in."""
        self._averages.update(self._trainer.optimizer.fast(self._parameters))
        if self._snapshots is not None:
            self._snapshots.take(self._trainer.step, self._averages.averages)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Measure the model at every readout, on the validation data that is for the time of training.

        Returns:
            What the task measures, by readout, and of an average that is rebuilt the "residual" of its
            profile; values that are not finite are left as they are.
        """
        found: dict[str, dict[str, float]] = {}
        for readout, (kind, value) in self._readouts.items():
            self._residual = None
            with self._at(kind, value):
                found[readout] = dict(self._trainer.measure(full=False))
            if self._residual is not None:
                found[readout]["residual"] = self._residual
        return found

    @contextmanager
    def _at(self, kind: str, value: float) -> Iterator[None]:
        trainer = self._trainer
        if kind == "x":
            with trainer.at_x():
                yield
        elif kind == "y":
            with trainer.at_y():
                yield
        else:
            with restored(self._parameters):
                for parameter, point in zip(self._parameters, self._point(kind, value), strict=True):
                    parameter.data.copy_(point)
                with trainer.at_y():
                    yield

    def _point(self, kind: str, value: float) -> list[Tensor]:
        if kind == "line":
            z = [tensor.detach().clone() for tensor in self._trainer.optimizer.fast(self._parameters)]
            with self._trainer.optimizer.averaged():
                x = [parameter.detach().clone() for parameter in self._parameters]
            return list(torch._foreach_lerp(x, z, value))
        if value in self._averages.averages:
            return self._averages.averages[value]
        assert self._snapshots is not None, "they are kept if a power is not"
        point, self._residual = self._snapshots.rebuild(value, self._trainer.step)
        return point

    def fits(
        self, state: Mapping[str, Any], readings: Mapping[int, Collection[str]], due: Collection[int]
    ) -> bool:
        """Whether a run that was saved can go on as one with these readouts.

        Args:
            state: `state_dict()` of the readouts of the run that was saved.
            readings: The readouts at which it was evaluated, by step.
            due: Steps at which it should have been by then.
        """
        kappas = [kappa for kappa, _ in state["averages"]["averages"]]
        alike = (state["snapshots"] is None) == (self._snapshots is None)
        evaluated = all(self._readouts.keys() <= set(readings.get(step, ())) for step in due)
        return alike and kappas == [*self._averages.averages] and evaluated

    def state_dict(self) -> dict[str, Any]:
        """Return all that later evaluations depend on."""
        snapshots = None if self._snapshots is None else self._snapshots.state_dict()
        return {"averages": self._averages.state_dict(), "snapshots": snapshots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()` of the same readouts."""
        self._averages.load_state_dict(state["averages"])
        if self._snapshots is not None:
            self._snapshots.load_state_dict(state["snapshots"])
