"""`amuse-lab report`: writes the page of a study, its figures and documents, from its records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from amuse_lab.arguments import parse as parse_options
from amuse_lab.errors import MissingError, require
from amuse_lab.files import replacing
from amuse_lab.studies import records as files
from amuse_lab.studies.catalogue import STUDIES, find
from amuse_lab.studies.figures import write_figures
from amuse_lab.studies.page.page import write_page
from amuse_lab.studies.results import readme_block, results_page, with_block
from amuse_lab.studies.study import Records, Study

PAGE = "report.html"
README = "README.md"


@dataclass(frozen=True)
class ReportOptions:
    """Writes the page of a study, one file that needs no network, from its records.

    Attributes:
        studies: Names of the studies; none means all that have records.
        records: Folder that has a folder of records for each study.
        out: Folder for the pages, which are then called STUDY.html; None writes report.html beside the
            records.
        figures: A folder to write the figures to as well, as STUDY-FIGURE.png.
        project: Folder of this project's sources: writes its docs/results.md and what its README.md says
            between the marks of the results, both with the figures of docs/figures.
    """

    studies: tyro.conf.Positional[tuple[str, ...]] = ()
    records: Path = Path("records")
    out: Path | None = None
    figures: Path | None = None
    project: Path | None = None


@dataclass(frozen=True)
class Request:
    """What to write, checked.

    Attributes:
        studies: The studies, each with the folder of its records.
        out: Folder for the pages; None writes each beside its records.
        figures: Folder for the figures; None draws none.
        project: Folder of the project's sources whose documents are written; None writes none.
    """

    studies: list[tuple[Study, Path]]
    out: Path | None
    figures: Path | None
    project: Path | None


def parse(arguments: Sequence[str]) -> Request:
    """Read and check the command line.

    Args:
        arguments: Words of the command line after `amuse-lab report`: names of studies, and options.

    Raises:
        ConfigError: For a study that does not exist, or an option that does not.
        MissingError: If a study has no records.
        SystemExit: With status 0, after printing the help.
    """
    given = parse_options(
        ReportOptions,
        arguments,
        prog="amuse-lab report",
        description="Writes the page of a study, one file that needs no network, from its records. Studies: "
        f"{', '.join(STUDIES)}.",
    )
    for name in ("out", "figures"):
        folder = getattr(given, name)
        require(folder is None or not folder.is_file(), f"--{name}", "a folder", str(folder))
    readme = given.project is None or (given.project / README).is_file()
    require(readme, "--project", f"a folder with a {README}", str(given.project))
    studies = [find(name) for name in dict.fromkeys(given.studies or STUDIES)]
    folders = [(study, given.records / study.name) for study in studies]
    found = [(study, folder) for study, folder in folders if (folder / files.RUNS).is_file()]
    missing = [study.name for study, folder in folders if (study, folder) not in found]
    if missing and (given.studies or not found):
        raise MissingError(
            f"{given.records} has no records of {', '.join(missing)}: "
            f"`amuse-lab compare {missing[0]}` makes them"
        )
    return Request(found, given.out, given.figures, given.project)


def run(request: Request) -> None:
    """Write the pages and the figures, and say where they are.

    Args:
        request: Checked command line, from `parse`.

    Raises:
        RecordError: If records are damaged.
    """
    known: list[tuple[Study, Records]] = []
    for study, folder in request.studies:
        records = files.read(folder)
        known.append((study, records))
        path = folder / PAGE if request.out is None else request.out / f"{study.name}.html"
        write_page(study, records, files.read_environments(folder), path)
        print(f"page: {path}")
        if request.figures is not None:
            for figure in write_figures(study, records, request.figures).values():
                print(f"figure: {figure}")
    if request.project is not None:
        _write_documents(known, request.project)


def _write_documents(known: Sequence[tuple[Study, Records]], project: Path) -> None:
    """Write docs/results.md and the results of README.md, with their figures."""
    documents = project / "docs"
    pictures = {}
    for study, records in known:
        written = write_figures(study, records, documents / "figures")
        pictures[study.name] = {name: f"figures/{path.name}" for name, path in written.items()}
    readme = (project / README).read_text("utf-8")
    in_readme = {
        study: {name: f"docs/{path}" for name, path in paths.items()} for study, paths in pictures.items()
    }
    texts = {
        documents / "results.md": results_page(known, pictures),
        project / README: with_block(readme, readme_block(known, in_readme)),
    }
    for path, text in texts.items():
        with replacing(path) as partial:
            partial.write_text(text, "utf-8")
        print(f"document: {path}")
