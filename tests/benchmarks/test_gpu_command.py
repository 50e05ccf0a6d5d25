"""The command for a machine with a GPU: what happens to its parts, and each of them as small as it can be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from amuse_lab.bench.contestants import CONTESTANTS, Contestant
from amuse_lab.bench.sizes import SIZES
from benchmarks.gpu import checks, images, pretraining, runner, steps
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.part import Part as Underway
from benchmarks.gpu.plan import PARTS, ROOT, SUMMARY, Part, limit
from benchmarks.gpu_kernels import Rates

CPU = torch.device("cpu")


def part(name: str, share: float = 0.2) -> Part:
    return Part(name, f"which {name}", f"tests.benchmarks.parts.{name}", share)


def test_every_part_runs_whatever_became_of_the_others(tmp_path: Path) -> None:
    parts = [part("raises"), part("crashes"), part("hangs", 0.1), part("finishes")]
    summary = runner.run(parts, tmp_path, seconds=15.0, arguments=["--tiny"], described={"card": "none"})
    outcomes = summary["parts"]
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == {
        "raises": "failed",
        "crashes": "failed",
        "hangs": "cut",
        "finishes": "finished",
    }
    assert outcomes["raises"]["reason"] == "RuntimeError: out of memory"
    assert outcomes["raises"]["results"] == 1
    assert outcomes["raises"]["failures"] == ["second: too large"]
    assert outcomes["crashes"]["reason"].startswith("SIGABRT")
    assert outcomes["crashes"]["results"] == 0
    assert re.fullmatch(r"it did not end within \d s", outcomes["hangs"]["reason"])
    assert json.loads((tmp_path / SUMMARY).read_text()) == summary

    (child,) = json.loads((tmp_path / "hangs.json").read_text())["results"]
    status = Path(f"/proc/{child['pid']}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"  # it has ended too
    (told,) = json.loads((tmp_path / "finishes.json").read_text())["results"]
    assert told["arguments"][-1] == "--tiny"


def test_another_call_keeps_the_parts_it_does_not_run(tmp_path: Path) -> None:
    runner.run([part("raises")], tmp_path, seconds=15.0)
    summary = runner.run([part("finishes")], tmp_path, seconds=15.0)
    assert set(summary["parts"]) == {"raises", "finishes"}
    assert runner.run([part("raises")], tmp_path, seconds=0.5)["parts"]["raises"]["status"] == "not run"
    assert not (tmp_path / "raises.json").exists()  # of a part that did not run there is no old record


def test_the_last_part_takes_the_time_that_is_left() -> None:
    parts = [part("raises", 0.1), part("hangs", 0.3), part("finishes", 0.1)]
    assert limit(parts, 0, whole=100.0, left=100.0) == pytest.approx(20.0)
    assert limit(parts, 1, whole=100.0, left=30.0) == 30.0
    assert limit(parts, 2, whole=100.0, left=77.0) == 77.0
    assert sum(each.share for each in PARTS) == pytest.approx(1.0)


def test_a_device_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device; others run this")
    assert main(["--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"gpu: torch cannot use cuda here: .*\n", said.err)
    assert said.out == ""


# --- the parts ------------------------------------------------------------------------------------


@pytest.fixture
def underway(tmp_path: Path) -> Underway:
    return Underway(CPU, tiny=True, seconds=600.0, out=tmp_path / "part.json")


def results(underway: Underway) -> dict[str, dict[str, Any]]:
    assert underway.out is not None
    found = json.loads(underway.out.read_text())["results"]
    return {result["what"]: result for result in found}


def test_checks_report_every_test_as_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import time, pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no reason')\ndef test_left_out(): pass\n"
        "def test_slow(): time.sleep(60)\n"
    )
    cut = checks.run(checks.Group("some", (str(file),), {}), seconds=3.0)
    assert (cut["passed"], cut["failed"], cut["skipped"], cut["ended"]) == (1, 1, 1, False)
    assert [reason.split(":")[0] for reason in cut["not_passed"].values()] == ["assert 1 == 2", "Skipped"]
    broken = tmp_path / "test_broken.py"
    broken.write_text("import no_such_module\n")
    found = checks.run(checks.Group("broken", (str(broken), str(file), "-k", "right"), {}), seconds=60.0)
    assert (found["passed"], found["failed"], found["ended"]) == (1, 1, True)


def test_checks_run_every_test_that_is_marked() -> None:
    tests = (ROOT / "tests").rglob("test_*.py")
    marked = {
        str(path.relative_to(ROOT))
        for path in tests
        if "pytest.mark.gpu" in path.read_text() and path.resolve() != Path(__file__).resolve()
    }
    assert marked == set(checks.GPU_TESTS)
    cases = {path.name for path in (ROOT / checks.KERNELS).glob("cases_*.py")} - {"cases_compilation.py"}
    run = {Path(each).name for group in checks.groups("cuda", tiny=False) for each in group.arguments}
    assert cases <= run


def test_steps(underway: Underway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.nn.Module) -> Any:
        raise RuntimeError("not on this device")

    broken = Contestant("broken", "which cannot step", fails)
    chosen = [CONTESTANTS["amuse"], broken, CONTESTANTS["adamw"]]
    monkeypatch.setattr(steps, "contestants", lambda _: list(chosen))
    steps.measure_size(underway, SIZES["256-wide"], Rates(1e9, 1e9), rounds=2)
    found = results(underway)
    assert "not on this device" in found["256-wide: broken"]["failure"]
    ours, adamw = found["256-wide: amuse"], found["256-wide: adamw"]
    assert ours["ratio_to_amuse"] == 1.0
    assert adamw["ratio_to_amuse"] < 1.0
    # Of 8 x 256 x 256 numbers the gradient is read, parameter and two moments read and written, at 1 GB/s.
    assert adamw["floor_milliseconds"] == pytest.approx(8 * 256**2 * 4 * 7 / 1e6, rel=1e-3)
    assert adamw["share_of_floor"] == pytest.approx(adamw["floor_milliseconds"] / adamw["milliseconds"])
    assert ours["floor_milliseconds"] - adamw["floor_milliseconds"] > 8 * 15 * 2 * 256**3 / 1e6 * 0.9


def test_the_switch_of_the_kernel_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spy:
        def __init__(self) -> None:
            self.state: dict[str, Any] = {}

        def step(self) -> None:
            assert steps.os.environ[steps.SWITCH] == "0"

    monkeypatch.delenv(steps.SWITCH, raising=False)
    steps.Plain(Spy()).step()
    assert steps.SWITCH not in steps.os.environ


def test_forms_of_amuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel, as it comes, and without; where there is no kernel, there is one form of each."""

    def ours() -> list[str]:
        names = [each.name for each in steps.contestants(torch.device("cuda"))]
        return [name for name in names if name.startswith("amuse")]

    monkeypatch.setattr(steps, "available", lambda _: True)
    assert ours() == ["amuse", "amuse-plain", "amuse-captured", "amuse-captured-plain"]
    monkeypatch.setattr(steps, "available", lambda _: False)
    assert ours() == ["amuse", "amuse-captured"]


def test_pretraining(underway: Underway) -> None:
    pretraining.measure(underway)
    found = results(underway)
    assert list(found) == ["amuse", "adamw", "muon"]
    for each in found.values():
        assert 4 < each["loss"] < 6  # of 256 tokens, at the beginning
        assert 0 < each["optimizer_share"] < 1
        assert each["tokens_per_second"] == pytest.approx(
            4 * 16 / sum(each["milliseconds_per_step"].values()) * 1e3
        )


def test_images(underway: Underway) -> None:
    images.measure(underway)
    assert set(results(underway)) == {"mnist-resnet8: amuse", "mnist-resnet8: sgd"}


def test_a_failure_is_recorded_and_the_rest_goes_on(underway: Underway) -> None:
    with underway.trying("first"):
        raise torch.OutOfMemoryError("no room\nand a long story")
    with underway.trying("second"):
        underway.add("second", value=float("nan"))
    assert results(underway) == {
        "first": {"what": "first", "failure": "OutOfMemoryError: no room"},
        "second": {"what": "second", "value": None},
    }
