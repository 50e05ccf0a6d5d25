"""Where metrics go besides metrics.jsonl, where it is installed: TensorBoard, Weights & Biases, Trackio."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from amuse_lab.config import RunConfig, SinkName, to_json
from amuse_lab.errors import RequestError
from amuse_lab.records import RunFolder


class Sink(Protocol):
    """Takes lines of metrics."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Take one line, as metrics.jsonl gets it."""

    def close(self) -> None:
        """Finish writing."""


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line under `<split>/<name>`; the step is their place, not one of them."""
    return {
        f"{line['split']}/{name}": value
        for name, value in line.items()
        if name not in ("split", "step") and value is not None
    }


class TensorBoard:
    """Event files in `tensorboard/` of the run folder.

    Args:
        folder: Path of the run folder.
        config: Config of the run; not needed here.
        step: Steps done; what an earlier process wrote of later ones is hidden.
    """

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:  # noqa: ARG002 - every sink's
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add one point to each curve."""
        for name, value in _scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the run folder; `WANDB_MODE` and its like apply.

    Args:
        folder: Path of the run folder; local files go to `wandb/` in it.
        config: Config of the run, which is recorded with it.
        step: Training steps done; not used, because a point that is logged twice has the same value.
    """

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:  # noqa: ARG002 - every sink's
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project="amuse-optim",
            group=config.recipe,
            name=folder.name,
            id=folder.name,
            resume="allow",
            dir=str(folder),
            config=to_json(config),
        )

    def log(self, line: Mapping[str, Any]) -> None:
        """Add one point to each curve."""
        self._run.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class Trackio:
    """A run of Trackio with the name of the run folder; `TRACKIO_DIR` and its like apply.

    Trackio keeps a point twice if it is sent twice, and loses the last ones if the process is killed. The
    lines of metrics.jsonl of a resumed run are therefore sent anew, to a run that replaces the earlier one of
    this name. A run that Trackio stores on another machine is not replaced; there it gets a second one.

    Args:
        folder: Path of the run folder.
        config: Config of the run, which is recorded with it.
        step: Training steps done; an earlier run is looked for if there are any.
    """

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:
        trackio = importlib.import_module("trackio")
        project = "amuse-optim"
        if step > 0:
            with suppress(ValueError):  # there is no such project on this machine
                for run in list(trackio.Api().runs(project)):
                    if run.name == folder.name:
                        run.delete()
        self._run = trackio.init(
            project=project, group=config.recipe, name=folder.name, config=to_json(config), embed=False
        )
        for line in RunFolder(folder).metrics():
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add one point to each curve."""
        self._run.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


_SINKS: Mapping[SinkName, tuple[Callable[[Path, RunConfig, int], Sink], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "trackio": (Trackio, "trackio"),
}
"""What makes each sink, and the package it needs."""


def check_installed(names: Sequence[SinkName]) -> None:
    """Check that the packages of some sinks are there.

    Raises:
        RequestError: With what to install, if one is not.
    """
    for name in names:
        package = _SINKS[name][1]
        if importlib.util.find_spec(package) is None:
            raise RequestError(
                f"the sink {name} needs a package that is not installed: pip install {package}"
            )


@contextmanager
def opened(names: Sequence[SinkName], config: RunConfig, folder: Path, step: int) -> Iterator[list[Sink]]:
    """Open the sinks of a run and close them in the end.

    Args:
        names: Names of the sinks to open.
        config: Config of the run, which some of the sinks record.
        folder: Path of the run folder.
        step: Training steps done before; 0 for a run that begins.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            sinks.append(_SINKS[name][0](folder, config, step))
            stack.callback(sinks[-1].close)
        yield sinks
