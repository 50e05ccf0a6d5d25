import json
import re
from pathlib import Path

import matplotlib
import pytest
from scipy import stats

from amuse_lab.cli import main
from amuse_lab.completion import script
from amuse_lab.studies import catalogue
from amuse_lab.studies.page.page import page
from amuse_lab.studies.records import RUNS, changed, read, read_environments, study_to_json, write
from amuse_lab.studies.records import STUDY as STUDY_FILE
from amuse_lab.studies.results import BEGINS, ENDS
from amuse_lab.studies.study import Request
from amuse_lab.studies.tuning import tuning
from amuse_lab.studies.verdicts import findings
from tests.amuse_lab.studies import invented

STUDY = invented.study()
RECORDS = invented.records(STUDY)
ENVIRONMENTS = {"invented": invented.ENVIRONMENT}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records of a study that the laboratory knows for once."""
    monkeypatch.setitem(catalogue.STUDIES, STUDY.name, invented.study)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "records" / STUDY.name, STUDY, RECORDS, ENVIRONMENTS)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_lies_beside_the_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert main(["report"]) == 0
    path = Path("records") / STUDY.name / "report.html"
    assert capsys.readouterr().out == f"page: {path}\n"
    assert files(folder) == before | {str(path): page(STUDY, RECORDS, ENVIRONMENTS).encode()}


def test_pages_and_figures_elsewhere_are_the_same_bytes_each_time(folder: Path) -> None:
    made = []
    for name in ("one", "two"):
        words = ["report", STUDY.name, "--records", "records", "--out", f"{name}/pages"]
        assert main([*words, "--figures", f"{name}/figures"]) == 0
        made.append(files(folder / name))
    figures = ("anytime", "difference", "learning-rate", "readouts", "settings", "steps")
    assert sorted(made[0]) == [
        *(f"figures/invented-{figure}.png" for figure in figures),
        "pages/invented.html",
    ]
    assert made[0] == made[1]


def test_documents_are_written_with_pictures_that_are_there(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text(f"before\n{BEGINS}\nwhat stood here\n{ENDS}\nafter\n")
    made = []
    for _ in range(2):
        assert main(["report", "--project", "."]) == 0
        made.append(files(folder))
    assert made[0] == made[1]
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "what stood here" not in text
    results = (folder / "docs" / "results.md").read_text()
    assert f"## {STUDY.name}" in results
    for page_of, content in ((folder, text), (folder / "docs", results)):
        pictures = re.findall(r"^!\[.*\]\((.*)\)$", content, re.MULTILINE)
        assert pictures[0].endswith(f"figures/{STUDY.name}-anytime.png")
        assert len(pictures) == (1 if page_of == folder else 6)
        assert all((page_of / picture).is_file() for picture in pictures)


def test_a_readme_without_a_place_for_results_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_text("nothing\n")
    assert main(["report", "--project", "."]) == 2
    assert BEGINS in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "nothing\n"
    assert not (folder / "docs" / "results.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inventd"], "unknown study 'inventd'; did you mean 'invented'?"),
        (
            ["shakespeare-anytime"],
            "records has no records of shakespeare-anytime: "
            "`amuse-lab compare shakespeare-anytime` makes them",
        ),
        (
            ["--records", "nowhere"],
            f"nowhere has no records of {', '.join(catalogue.STUDIES)}, invented: "
            "`amuse-lab compare shakespeare-anytime` makes them",
        ),
        (["--project", "nowhere"], "--project must be a folder with a README.md, got 'nowhere'"),
        (["--figure", "there"], "unknown option --figure; did you mean --figures?"),
        (
            ["--out", "records/invented/runs.jsonl"],
            "--out must be a folder, got 'records/invented/runs.jsonl'",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err == f"amuse-lab: {message}\n"
    assert files(folder) == before


def test_damaged_records_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = (folder / "records" / STUDY.name / "runs.jsonl").relative_to(folder)
    with path.open("a") as file:
        file.write("{}\n")
    assert main(["report"]) == 2
    assert f"{path}, line {len(RECORDS) + 1}: not the record of a run" in capsys.readouterr().err


def test_help_names_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in catalogue.STUDIES)
    assert "--figures" in printed


def test_studies_are_listed_and_completed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.partition("studies:\n")[2].partition("\n\n")[0]
    completed = script("bash")
    for name, made in catalogue.STUDIES.items():
        assert re.search(
            rf"^  {name} +{re.escape((made.__doc__ or '').partition(chr(10))[0])}$", listed, re.M
        )
        assert name in completed
    assert "--figures" in completed


ROOT = Path(__file__).parents[3]
RECORDED = [name for name in catalogue.STUDIES if (ROOT / "records" / name / RUNS).is_file()]


def test_documents_of_the_project_are_those_of_its_records(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    assert (
        main(
            ["report", "--records", str(ROOT / "records"), "--out", str(tmp_path), "--project", str(tmp_path)]
        )
        == 0
    )
    for name in ("README.md", "docs/results.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: `make report` writes it"
    for name in RECORDED:
        ours, recorded = tmp_path / f"{name}.html", ROOT / "records" / name / "report.html"
        assert ours.read_bytes() == recorded.read_bytes(), f"{name}: `make report` writes its page"
    drawn, kept = tmp_path / "docs" / "figures", ROOT / "docs" / "figures"
    ours = {path.name for path in drawn.iterdir()}
    assert ours == {path.name for name in RECORDED for path in kept.glob(f"{name}-*.png")}
    if f'"matplotlib=={matplotlib.__version__}"' in (ROOT / "pyproject.toml").read_text():
        for name in ours:  # by the version for development; others draw other bytes
            same = (drawn / name).read_bytes() == (kept / name).read_bytes()
            assert same, f"{name}: `make report` draws it"


_PARTS = "queries, keys and values apart"
_COSINE = "Muon + SGD with a cosine"
_CONSTANT = "Muon + SGD at a constant learning rate, an average of kappa 7"


@pytest.mark.parametrize(
    ("study", "row", "own", "other", "digits"),
    [
        ("shakespeare-anytime", "to Muon with a cosine, torch's", "anytime", "muon-cosine", 3),
        ("shakespeare-anytime", "to Muon with warm-up, stable and decay phases", "anytime", "muon-wsd", 3),
        ("shakespeare-anytime", "to AdamW with a cosine", "anytime", "adamw-cosine", 3),
        ("shakespeare-anytime", f"to NorMuon with a cosine, {_PARTS}", "anytime", "normuon-cosine", 3),
        (
            "shakespeare-fresh",
            "... with 20 new seeds (16 at 3,200) and other text",
            "anytime",
            "normuon-cosine",
            3,
        ),
        ("shakespeare-anytime", "AMUSE with T0 tuned, to Muon with a cosine", "amuse", "muon-cosine", 3),
        ("mnist-anytime", f"to {_COSINE}", "anytime", "muon-sgd-cosine", 4),
        ("mnist-anytime", "to AdamW with a cosine", "anytime", "adamw-cosine", 4),
        ("mnist-anytime", "to SGD with a cosine", "anytime", "sgd-cosine", 4),
        ("mnist-anytime", f"{_CONSTANT}, to {_COSINE}", "muon-sgd-constant", "muon-sgd-cosine", 4),
        ("mnist-anytime", f"AMUSE with T0 tuned, to {_COSINE}", "amuse", "muon-sgd-cosine", 4),
    ],
)
def test_tables_that_were_written_by_hand_are_those_of_the_records(
    study: str, row: str, own: str, other: str, digits: int
) -> None:
    found = findings(catalogue.find(study), read(ROOT / "records" / study))
    cells = []
    for horizon in found.study.horizons:
        ours, theirs = found.at(own, horizon), found.at(other, horizon)
        mean = stats.ttest_rel(
            *zip(*[(ours[seed], theirs[seed]) for seed in ours if seed in theirs], strict=True)
        )
        low, high = mean.confidence_interval(0.95)
        cells.append(f"{(low + high) / 2:+.{digits}f} ± {(high - low) / 2:.{digits}f}")
    text = (ROOT / "docs" / "anytime.md").read_text("utf-8")
    assert f"| {row} | {' | '.join(cells)} |" in text


def test_the_trials_of_fresh_seeds_are_those_of_the_study_before() -> None:
    fresh, before = (catalogue.find(f"shakespeare-{name}") for name in ("fresh", "anytime"))
    ours, theirs = (read(ROOT / "records" / study.name) for study in (fresh, before))
    for entry in fresh.entries:
        found = tuning(fresh, entry, ours)
        assert found.decided
        assert found.choices == tuning(before, entry, theirs).choices
        keys = {request.key(fresh) for request in found.trials}
        assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    assert not set(fresh.reporting_seeds) & {record.seed for record in theirs.values()}


@pytest.mark.parametrize("name", RECORDED)
def test_records_are_those_of_the_study_as_it_is_defined(name: str) -> None:
    study = catalogue.find(name)
    folder = ROOT / "records" / name
    content = json.loads((folder / STUDY_FILE).read_text())
    assert changed(content, study_to_json(study)) == {}
    environments = read_environments(folder)
    entries = {entry.name for entry in study.entries}
    of_study = [record for record in read(folder).values() if record.entry in entries]
    assert len(of_study) > 50
    for record in of_study:  # others are of optimizers that it does not have any more
        entry = study.entry(record.entry)
        assert set(record.point) == set(entry.tuned)
        assert record.environment in environments
        request = Request(record.entry, record.point, record.seed, record.steps, False, ())
        assert request.key(study) == record.key
