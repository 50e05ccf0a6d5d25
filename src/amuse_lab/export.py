"""`amuse-lab export`: the trained model of a run as a folder that others load without this package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from amuse_lab.arguments import parse as parse_options
from amuse_lab.errors import DataError, RecordError
from amuse_lab.files import check_is_file
from amuse_lab.resume import saved_config
from amuse_lab.tasks.image import export as image
from amuse_lab.tasks.image.task import ImageConfig
from amuse_lab.tasks.lm import export as text


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to export.

    Attributes:
        run: The run folder, which `amuse-lab train` has left.
        out: The folder to create; by default `export` in the run folder.
        data: The folder of prepared text whose tokenizer goes with a language model; by default the one
            that the run was trained on, in the data root.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_FOLDER")]
    out: Path | None = None
    data: Path | None = None


def parse(arguments: Sequence[str]) -> Request:
    """Read and check the command line.

    Args:
        arguments: Words of the command line after `amuse-lab export`: the run folder and options.

    Raises:
        ConfigError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    return parse_options(
        Request,
        arguments,
        prog="amuse-lab export",
        description="Writes a run's model as a folder. Of a language model transformers loads it: "
        "AutoModelForCausalLM.from_pretrained(FOLDER). Of an image classifier torch alone does: "
        "torch.export.load(FOLDER/model.pt2).module().",
    )


def run(request: Request) -> None:
    """Export, and print where to.

    Raises:
        DataError: If the run folder holds no model, or what belongs to it is missing or does not fit.
        RecordError: If the folder is there already or cannot be written.
    """
    out = request.out or request.run / "export"
    kind = _kind(request.run)
    if out.exists():
        raise RecordError(f"{out} exists already: choose another place with --out, or remove it")
    if kind == "lm":
        held = text.export_run(request.run, out, request.data)
    elif kind == "image":
        task = saved_config(request.run).task
        assert isinstance(task, ImageConfig), "its name says so"
        held = image.export_run(request.run, out, task)
    else:
        raise DataError(f"{request.run} is a run of {kind!r}, which cannot be exported")
    print(f"{out}: {held}")


def _kind(folder: Path) -> str:
    """The name of a run's task."""
    path = folder / "config.json"
    try:
        check_is_file(path)
        return str(json.loads(path.read_text(encoding="utf-8"))["task"]["name"])
    except OSError as error:
        raise DataError(f"{folder} is not a run folder: {error.strerror}: config.json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"cannot use {path}: {error}") from error
