"""What concerns the other ranks that share parameters: agreement before a step, and state that is saved."""

from collections.abc import Mapping
from typing import Any

import torch

from .keepers import gathered, leave_to_keepers
from .measurement import Measurement, sum_over_ranks
from .modes import AveragedOptimizer
from .plan import are_shared, division_of
from .ranks import Division, check_process_group
from .readiness import Look, looked_at
from .sharding import local
from .state import complete_states, follow_parameter
from .state_dict import portable, taking_over
from .versions import Versions


class SharingOptimizer(AveragedOptimizer):
    """Everything about `AMUSE` that other ranks take part in, where there are any."""

    # Measurements of each group's last step, by group index; None until `telemetry` is first called.
    measurements: dict[int, Measurement] | None = None
    # Who orthogonalizes what, where ranks share parameters. Copies, which cannot hold a process group, are
    # told of none.
    division: Division | None = None
    process_group: "torch.distributed.ProcessGroup | None" = None
    shard_state = False

    def _looked_at(self) -> Look:
        """Look at what could stop the step, together with the ranks that share parameters."""
        if self.shard_state:
            check_process_group(self.process_group)  # which a user may have replaced
        problem: Exception | None = None
        try:
            self._require_train_mode()
            complete_states(self.param_groups, self.state)
            self.notice_edits()
        except Exception as error:  # the other ranks have to be told
            problem = error
        if not are_shared(self.param_groups, self.process_group):
            self.division = None
        elif self.division is None or self.division.process_group is not self.process_group:
            self._divide()
        else:
            self.division.check()
        while True:
            measuring = self.measurements is not None
            look = looked_at(
                self.param_groups, self.state, self.division, measuring=measuring, problem=problem
            )
            if look is not None:
                return look
            self._divide()

    def _divide(self) -> None:
        """Divide the matrices over the ranks; all of them call this at once."""
        before = self.division
        division = division_of(
            self.param_groups, self.process_group, shard_state=self.shard_state, before=before
        )
        division.check()
        leave_to_keepers(self.param_groups, self.state, division, before)
        self.division = division

    def _plan(self) -> None:
        """Divide the matrices before the ranks compare their plans; drop state that other ranks keep."""
        self.division = division_of(
            self.param_groups, self.process_group, shard_state=self.shard_state, before=self.division
        )
        leave_to_keepers(self.param_groups, self.state, self.division, before=None)

    def _keep(self, measurements: Mapping[int, Measurement]) -> None:
        """Keep what was measured in a step, summed over the ranks that divide matrices among them."""
        if measurements:
            first = next(parameter for group in self.param_groups for parameter in group["params"])
            sum_over_ranks(measurements.values(), local(first).device)
        if self.measurements is not None:
            self.measurements |= measurements

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue a run: sequences, momenta, schedule, mode and options of every group.

        A function given as `orthogonalize` is stored by name alone, so that `torch.load(weights_only=True)`
        reads the file; the optimizer that loads it must have been built with that function. With
        `shard_state=True` every rank calls this, and gets all of it.
        """
        for group, parameter, state in self.members():
            follow_parameter(parameter, state, group)
        whole = portable(super().state_dict())
        if self.shard_state:
            found = gathered(self.param_groups, self.state, self.division)
            for index, (_, parameter, _) in enumerate(self.members()):
                whole["state"][index] |= found.get(parameter, {})
        return whole

    def __getstate__(self) -> dict[str, Any]:
        if self.shard_state:
            raise TypeError(
                "an optimizer with shard_state=True cannot be copied or pickled, because other ranks keep "
                "parts of its state: build a new one and load the state dict into it"
            )
        return super().__getstate__()

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state, options and mode. Also load the model's state dict that was saved with it.

        Loaded options replace the present ones, as in torch; one warning names those that differ. Options
        missing in a state dict of an older version keep their present values. Tensors are copied in the
        precision they were saved in. If this method raises, the optimizer is unchanged.

        Args:
            state_dict: From `state_dict()` of an optimizer with the same parameter groups.

        Raises:
            ValueError: If it does not fit these parameter groups, or was not made by AMUSE.
            TypeError: If an option in it has the wrong type.
        """
        with taking_over(self):
            super().load_state_dict(state_dict)
        self.versions = Versions()
        if self.shard_state:
            self._plan()
