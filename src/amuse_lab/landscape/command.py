"""`amuse-lab landscape`: the river and the valley of a run, and the claims about them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from amuse_lab import recipes
from amuse_lab.arguments import parse as parse_options
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, require
from amuse_lab.files import replacing
from amuse_lab.landscape import experiments, figures
from amuse_lab.landscape.claims_page import claims_page
from amuse_lab.landscape.measuring import Settings
from amuse_lab.landscape.page import page
from amuse_lab.landscape.recorded import Recorded, to_json
from amuse_lab.landscape.river import RiverSettings
from amuse_lab.landscape.running import config_of, live, of_folder
from amuse_lab.ranges import Count, check_ranges
from amuse_lab.recipes.smoke import reduced
from amuse_lab.studies import drawing
from amuse_lab.studies.measuring import surroundings
from amuse_lab.studies.report import PAGE as REPORT

CLAIMS = "claims"
PAGE = "landscape.html"
NUMBERS = "landscape.json"
STEPS = 400
"""Training steps of the small form where none are asked for."""


@dataclass(frozen=True)
class LandscapeOptions:
    """The curvature around a run, and what its updates have to do with it, as one page.

    Attributes:
        target: A recipe, whose small form is trained; or a run folder, whose checkpoints are measured; or
            "claims", the experiments on what the paper says.
        optimizer: Optimizer of the recipe; None takes its own choice.
        steps: Training steps of the small form.
        points: How many steps of the run are measured.
        out: Folder of the page and its numbers; None means the run folder, landscape/RECIPE-OPTIMIZER, or
            records/landscape.
        figures: A folder to write the figures to as well, as PNG files.
        measure: How much is measured at each of these steps.
        river: How the river test lets the learning rate down at the last of these steps.
    """

    target: tyro.conf.Positional[str]
    optimizer: str | None = None
    steps: Count = STEPS
    points: Count = 2
    out: Path | None = None
    figures: Path | None = None
    measure: Settings = field(default_factory=lambda: Settings(batches=1))
    river: RiverSettings = field(default_factory=RiverSettings)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.target == CLAIMS or Path(self.target).is_dir():
            here = "left out, since no recipe is trained here"
            require(self.optimizer is None, "optimizer", here, self.optimizer)
            require(self.steps == STEPS, "steps", here, self.steps)
            if self.target == CLAIMS:
                plain = LandscapeOptions(target=".")
                for name in ("points", "figures", "measure", "river"):
                    given = getattr(self, name)
                    fixed = "left out: what the claims rest on was fixed before their runs"
                    require(given == getattr(plain, name), name, fixed, given)
            return
        apart = self.measure.window + 1
        least = f"at least {apart}, one more than the {self.measure.window} of measure.window"
        require(self.steps >= apart, "steps", least, self.steps)
        most = self.steps // apart
        require(self.points <= most, "points", f"from 1 to {most}, a window apart", self.points)


def parse(arguments: Sequence[str]) -> LandscapeOptions:
    """Read and check the command line.

    Args:
        arguments: Words of the command line after `amuse-lab landscape`: the target, then options.

    Raises:
        ConfigError: For a target that does not exist, or an option that does not.
        SystemExit: With status 0, after printing the help.
    """
    options = parse_options(
        LandscapeOptions,
        arguments,
        prog="amuse-lab landscape",
        description="Measures the curvature around a run and what its updates have to do with it; writes one "
        "page that needs no network, and its numbers. `landscape RECIPE` trains the recipe's small form, "
        "`landscape RUN_FOLDER` reads its checkpoints, `landscape claims` makes the runs that "
        "records/landscape lacks.",
    )
    if options.target != CLAIMS and not Path(options.target).is_dir():
        if "/" in options.target:
            raise ConfigError(f"there is no run folder {options.target}; `ls -d runs/*/*` shows yours")
        recipes.find(options.target)
    return options


def run(options: LandscapeOptions) -> None:
    """Measure, and write the page.

    Args:
        options: Checked command line, from `parse`.

    Raises:
        RequestError: If data is missing, or a run folder has no checkpoint that can be used.
    """
    if options.target == CLAIMS:
        folder = options.out or Path("records/landscape")
        records = experiments.make(folder, print)
        _write(folder / REPORT, claims_page(records, experiments.read_environments(folder)))
        return
    if Path(options.target).is_dir():
        folder = Path(options.target)
        config = config_of(folder)
        recorded = of_folder(folder, options.points, options.measure, options.river, print)
    else:
        config = _small(options)
        recorded = _trained(config, options)
        folder = Path("landscape") / f"{options.target}-{recorded.name}"
    folder = options.out or folder
    folder.mkdir(parents=True, exist_ok=True)
    environment = surroundings(config)
    numbers = {"run": to_json(recorded), "environment": environment}
    _write(folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")
    _write(folder / PAGE, page(recorded, environment))
    if options.figures is not None:
        with drawing.defaults():
            drawn = figures.of_run(recorded)
            for path in figures.write(drawn, options.figures, "landscape"):
                print(f"figure: {path}")


def _small(options: LandscapeOptions) -> RunConfig:
    """The small form of the recipe that is asked for."""
    recipe = recipes.find(options.target)
    return small(recipe() if options.optimizer is None else recipe(options.optimizer), options.steps)


def _trained(config: RunConfig, options: LandscapeOptions) -> Recorded:
    """Train a run and measure it at evenly spread steps."""
    return live(
        config,
        [round(options.steps * (n + 1) / options.points) for n in range(options.points)],
        options.measure,
        options.river,
        name=config.optimizer.name,
        setting=config.task.data,
        say=print,
    )


def small(config: RunConfig, steps: int) -> RunConfig:
    """Return the small form of a recipe: its small model on data on board, all lengths in proportion.

    Args:
        config: Config of the recipe in its full size.
        steps: Training steps of the small form.
    """
    optimizer = config.optimizer
    lengths = {
        field.name: max(2, round(length * steps / config.steps))
        for field in dataclasses.fields(optimizer)
        if field.name.endswith(("warmup_steps", "t0_steps", "lr_decay_from"))
        and (length := getattr(optimizer, field.name))
    }
    return dataclasses.replace(
        reduced(config), optimizer=dataclasses.replace(optimizer, **lengths), steps=steps
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
    print(f"{'page' if path.suffix == '.html' else 'numbers'}: {path}")
