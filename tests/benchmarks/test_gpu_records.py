"""What the parts of the GPU command share: generated tokens, wheels, and the tables of its records."""

import zipfile
from pathlib import Path

import torch

from benchmarks.gpu import runner, tables, tokens, wheels
from benchmarks.gpu.plan import SUMMARY

CPU = torch.device("cpu")


def test_generated_tokens_can_be_learned_and_never_repeat() -> None:
    drawn = tokens.generate(64, 2000, 64, seed=0, device=CPU)
    assert drawn.shape == (64, 2000)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 64
    text = drawn[:, 100:].long()
    before, last, following = text[:, :-2].flatten(), text[:, 1:-1].flatten(), text[:, 2:].flatten()
    counts = torch.zeros(64 * 64, 64).index_put_((before * 64 + last, following), torch.ones(1), True)
    frequent = counts[counts.sum(1).argmax()]
    alone = counts.sum(0)
    # What follows a frequent pair: half of 75 % is its first choice, more than any token has by itself.
    assert float(frequent.max() / frequent.sum()) > 0.3 > float(alone.max() / alone.sum())
    other = tokens.generate(64, 2000, 64, seed=1, device=CPU)
    assert not torch.equal(drawn, other)
    again = torch.zeros(64 * 64, 64)
    text = other[:, 100:].long()
    places = text[:, :-2].flatten() * 64 + text[:, 1:-1].flatten(), text[:, 2:].flatten()
    again.index_put_(places, torch.ones(1), True)
    pair = int(counts.sum(1).argmax())
    assert int(again[pair].argmax()) == int(frequent.argmax())  # the tables are the same


def test_windows_of_generated_tokens() -> None:
    drawn = torch.arange(12 * 100, dtype=torch.int32).view(12, 100)
    text = tokens.GeneratedText(drawn, context=9, batch=6, seed=3)
    whole = text.batch(5, slice(None))
    assert whole.shape == (6, 10)
    assert torch.equal(whole, text.batch(5, slice(None)))
    assert torch.equal(whole[2:4], text.batch(5, slice(2, 4)))
    assert not torch.equal(whole, text.batch(6, slice(None)))
    assert torch.equal(whole[:, 1:] - whole[:, :-1], torch.ones(6, 9, dtype=torch.int32))
    first = (12 - tokens.STREAMS_FOR_VALIDATION) * 100
    assert int(whole.max()) < first
    count = len(text.validation())
    assert count == tokens.STREAMS_FOR_VALIDATION * 11
    windows = text.validation_windows(text.validation())
    assert int(windows.min()) == first
    assert torch.equal(text.validation_windows(text.validation(4)[1:2]), windows[count // 4][None])


def test_wheels_of_what_a_machine_lacks() -> None:
    everything = wheels.requirements(set())
    assert "tyro==1.0.17" in everything
    assert len(everything) == len(wheels.PACKAGES)
    has = wheels.listed("numpy==2.5.2\nOpt_Einsum, pytest>=9 typeguard")
    assert has == {"numpy", "opt-einsum", "pytest", "typeguard"}
    assert len(wheels.requirements(has)) == len(everything) - 4


def test_wheels_are_unpacked_unless_installed(tmp_path: Path) -> None:
    for name in ("numpy", "no_such_package"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
    assert wheels.unpack(tmp_path, tmp_path / "there") == ["no-such-package"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["no_such_package"]


def test_the_page_quotes_the_records() -> None:
    page = tables.PAGE.read_text()
    assert page.count(tables.BEGIN) == page.count(tables.END) == 1
    assert page == tables.with_quotes(page, tables.RECORDS)


def test_tables_of_a_record(tmp_path: Path) -> None:
    record = tmp_path / "2026-01-02-card"
    record.mkdir()
    runner.write(
        record / SUMMARY,
        {
            "card": "Abacus 3000",
            "device": "cuda",
            "torch": "2.11.0",
            "cuda": "13.0",
            "python": "3.12.3",
            "date": "2026-01-02",
            "tiny": False,
            "parts": {
                "images": {"status": "finished", "failures": ["imagenet-resnet50: no memory"]},
                "steps": {"status": "cut", "reason": "it did not end within 9 s", "failures": []},
            },
        },
    )
    row = {"what": "cifar10-wrn16x8: amuse", "images_per_second": 12345.6, "optimizer_share": 0.0456}
    failure = {"what": "imagenet-resnet50", "failure": "no memory"}
    runner.write(record / "images.json", {"results": [row | {"peak_memory_bytes": 3 * 2**30}, failure]})
    failing = {
        "tests/test_some.py::test_it": "assert 1 == 2",
        "tests/test_some.py::test_other": "Skipped: why",
    }
    group = {
        "what": "optimizer",
        "passed": 3,
        "failed": 1,
        "skipped": 1,
        "ended": True,
        "not_passed": failing,
    }
    runner.write(record / "checks.json", {"results": [group]})
    text = tables.quoted(tmp_path)
    assert (
        "| optimizer | 3 | 1 | 1 |  |\n\nFailed:\n\n- `tests/test_some.py::test_it`: assert 1 == 2\n" in text
    )
    assert text.startswith("### Abacus 3000, torch 2.11.0, CUDA 13.0, Python 3.12.3, 2026-01-02\n")
    assert "| cifar10-wrn16x8: amuse | 12,346 | 4.6% | 3.0 |" in text
    assert "- images: imagenet-resnet50: no memory" in text
    assert "- steps: cut it did not end within 9 s" in text
    assert "- checks: not run" in text
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.with_quotes(page, tmp_path) == f"before\n{tables.BEGIN}\n\n{text}\n\n{tables.END}\nafter\n"


def test_tables_of_steps(tmp_path: Path) -> None:
    """As they are recorded: launches are counted, or could not be; a form that failed has no row."""
    row = {
        "size": "7m",
        "milliseconds": 7.3057,
        "ratio_to_amuse": 1.0,
        "launches": 1303,
        "share_of_floor": 0.01687,
        "state_bytes_per_parameter": 8.0,
        "extra_bytes_per_parameter": 5.48,
    }
    results = [
        {"what": "7m: amuse", "optimizer": "amuse"} | row,
        {"what": "7m: naive", "optimizer": "naive"} | row | {"launches": None},
        {"what": "7m: amuse-captured, kernels", "failure": "RuntimeError: no room"},
        {"what": "7m: amuse-captured", "optimizer": "amuse-captured"}
        | row
        | {"launches": 1, "extra_bytes_per_parameter": None},
        {"what": "kernel by itself", "all_right": True},
    ]
    ceilings = {"copy_bytes_per_second": 2.4318e12, "flops_per_second": 6.924e14}
    runner.write(tmp_path / "steps.json", {"ceilings": ceilings, "results": results})
    text = tables.tables(tmp_path)
    assert "copy 2,432 GB/s, bfloat16 product 692 TFLOP/s" in text
    assert [line for line in text.splitlines() if line.startswith("| 7m")] == [
        "| 7m: amuse | 7.31 | 1.00 | 1,303 | 2% | 8.0 | 5.48 |",
        "| 7m: naive | 7.31 | 1.00 |  | 2% | 8.0 | 5.48 |",
        "| 7m: amuse-captured | 7.31 | 1.00 | 1 | 2% | 8.0 |  |",
    ]


def test_walks_on_a_cpu_are_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    runner.write(tmp_path / "walk" / SUMMARY, {"card": "cpu", "device": "cpu", "tiny": False})
    assert tables.quoted(tmp_path) == tables.NOTHING
