from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.landscape import claims, claims_page, figures, page
from amuse_lab.landscape.charts import charts
from amuse_lab.studies import drawing
from tests.amuse_lab.landscape.runs import recorded
from tests.amuse_lab.studies.browser import CHROMIUM, Browser, browser
from tests.amuse_lab.studies.test_page import Structure
from tests.amuse_lab.studies.test_page import charts as charts_of

RUN = recorded()
PLAIN = recorded("muon")
ALL = [recorded(name, setting, seed) for setting, name in claims.runs() for seed in (1, 2, 3)]
ENVIRONMENT = {"torch": "invented"}
CHARTS = [
    "valley",
    "gradients",
    "along",
    "updates",
    "oscillation",
    "singular",
    "sharpness",
    "spectrum",
    "river",
]
CLAIMS = ["claim-1", "claim-2", "claim-3", "claim-3-way", "claim-4"]
PAGES = {
    "run": (page.page(RUN, ENVIRONMENT), CHARTS),
    "run without an average": (
        page.page(PLAIN, ENVIRONMENT),
        [name for name in CHARTS if name not in ("valley", "along")],
    ),
    "claims": (claims_page.claims_page(ALL, {"invented": ENVIRONMENT}), CLAIMS),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_loads_nothing(name: str) -> None:
    text, expected = PAGES[name]
    structure = Structure(text)
    assert structure.open == []
    assert list(charts_of(text)) == expected
    assert set(expected) <= set(structure.all("id"))
    assert not any("http" in link for link in structure.all("href"))
    assert structure.all("src") == []
    assert '"torch": "invented"' in structure.words
    assert "default-src 'none'" in structure.all("content")[-1]


def test_the_page_says_what_was_found() -> None:
    words = " ".join(Structure(PAGES["run"][0]).words.split())
    for said in (
        "steps the loss at x is 2, at z 3, and as far beyond x 3: it rises on both sides of x.",
        "Dominant share of the gradient: 0.20 at x, 0.40 at y, 0.60 at z.",
        "Dominant share: 0.5 of the momentum, 0.1 of the update, 0.045 of a random direction.",
        "Cosine of consecutive updates: -0.50 in the dominant subspace, 0.50 in the bulk.",
        "after 20 steps, gains 0.0900 of validation loss: x's height above the river's floor cannot be told",
        "x is the average that is shipped, y the point where gradients are taken, z what each step moves",
        "persistence of the dominant parts",
    ):
        assert said in words


def test_the_claims_have_their_verdicts_and_the_rule() -> None:
    words = " ".join(Structure(PAGES["claims"][0]).words.split())
    assert words.count("Supported (6 supported)") == 3
    assert words.count("Supported (12 supported)") == 1
    assert claims.RULE in words
    assert "It is not finished: 36 runs are to be made." in words  # the invented runs have other settings


def test_charts_show_the_record() -> None:
    made = {chart["id"]: chart for chart in charts(RUN)}
    (x, y, z) = made["gradients"]["groups"][0]["series"]
    assert (x["y"], y["y"], z["y"]) == ([0.2, 0.2], [0.4, 0.4], [0.6, 0.6])
    last, first = made["updates"]["groups"]
    assert [series["x"] for series in first["series"]] == [[11, 12]] * 3
    assert [series["x"] for series in last["series"]] == [[21, 22]] * 3
    (gain, *_) = made["river"]["groups"][0]["series"]
    assert (gain["x"], gain["y"]) == ([0.01], [pytest.approx(0.09)])
    assert made["oscillation"]["groups"][0]["series"][0]["y"] == [-0.5]


def test_claims_are_drawn_as_means_with_the_least_and_the_most() -> None:
    (first, *_) = claims_page.charts(ALL)
    assert [group["name"] for group in first["groups"]] == ["text", "images"]
    update = next(each for each in first["groups"][0]["series"] if each["name"] == "amuse, update")
    assert update["y"] == [0.102, 0.102]
    assert (update["low"], update["high"]) == ([0.101, 0.101], [0.103, 0.103])


def test_a_run_that_measured_nothing_has_a_page() -> None:
    failed = replace(RUN, measurements=[], rivers=[], failure="the loss is <nan>")
    structure = Structure(page.page(failed, ENVIRONMENT))
    assert structure.open == []
    assert "It failed: the loss is <nan>" in structure.words
    assert "There is nothing to draw." in structure.words


def test_a_subspace_that_was_refused_is_said() -> None:
    at = RUN.measurements[0]
    refused = replace(at.spectra["x"], k=None, bound=None)
    bare = replace(
        at, spectra=dict.fromkeys(at.spectra, refused), gradients={}, along=None, watched=None, plane=None
    )
    text = page.page(replace(RUN, measurements=[bare]), ENVIRONMENT)
    assert "no gap" in text
    assert list(charts_of(text)) == ["valley", "sharpness", "spectrum", "river"]


def test_figures_are_the_same_bytes_again(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        with drawing.defaults():
            written.append(figures.write(figures.of_run(RUN), tmp_path / name, "landscape"))
    assert [path.name for path in written[0]] == [f"landscape-{name}.png" for name in [*CHARTS, "plane"]]
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_pages_are_the_same_text_again() -> None:
    assert page.page(RUN, ENVIRONMENT) == PAGES["run"][0]
    assert claims_page.claims_page(ALL[::-1], {"invented": ENVIRONMENT}) == PAGES["claims"][0]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium on this machine (Debian: apt-get install chromium); its twin in the gate is "
    "test_a_page_is_whole_and_loads_nothing",
)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_without_complaints(name: str, chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[name][0], "utf-8")
    for width in (360, 1200):
        chromium.open(path, width=width)
        assert chromium.value("document.querySelectorAll('canvas').length") == len(PAGES[name][1])
        assert (
            chromium.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        )
        assert chromium.requests == [path.as_uri()]
        assert chromium.complaints == []
