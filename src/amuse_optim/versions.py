"""Writes to parameters from outside, as the version counters of tensors show them.

x is decoded from y, so a parameter that is edited between steps stands for an x that nobody set. Writes
through `.data` do not count.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .buckets import Group, State
from .options import describe
from .state import started
from .warn import warn

_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class Versions:
    """What the optimizer left behind when it last wrote to parameters.

    Args:
        left: Parameters and their version counters.
        told: The parameters that the user was told of.
    """

    left: tuple[tuple[Tensor, int], ...] = ()
    told: frozenset[Tensor] = frozenset()

    def recorded(self, groups: Iterable[Group]) -> "Versions":
        """As they are now."""
        parameters = [p for group in groups for p in group["params"]]
        try:
            left = [(p, p._version) for p in parameters]
        except RuntimeError:  # tensors that were made under inference_mode have no counter
            left = [(p, p._version) for p in parameters if not p.is_inference()]
        return Versions(tuple(left), self.told.intersection(parameters) if self.told else self.told)

    def accepted(self, parameters: Iterable[Tensor]) -> "Versions":
        """As they are now for some of the parameters."""
        chosen = set(parameters)
        left = tuple((p, p._version if p in chosen else v) for p, v in self.left)
        return Versions(left, self.told - chosen)

    def checked(self, groups: Iterable[Group], states: Mapping[Tensor, State]) -> "Versions":
        """Warn of parameters that were written to since, each once."""
        edited = {p for p, version in self.left if p._version != version}
        if not edited:
            return self
        names = {
            p: describe(group, index)
            for group in groups
            for index, p in enumerate(group["params"])
            if p in edited - self.told and started(states[p])
        }
        if names:
            named = ", ".join(list(names.values())[:_NAMED_AT_MOST])
            more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
            warn(
                "weights were changed since the optimizer last wrote to them, and z and the average x do not "
                f"follow: {named}{more}. Call accept_weights(optimizer, parameters) with these to go on "
                "from their weights as they stand, which forgets their averages, or project(optimizer, "
                "function) to hold z and x to a mask or bound as well. Nothing is to do where they were put "
                "back as they were",
            )
        return Versions(self.left, self.told.union(names))
