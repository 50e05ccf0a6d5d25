import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.parallel import ALONE, Processes, init_distributed, usable
from amuse_lab.progress import Silence
from amuse_lab.records import RunFolder
from amuse_lab.tasks.lm.bundled import BUNDLED
from amuse_lab.train import train
from tests.amuse_lab.tiny_text import tiny_text
from tests.programs import ranks

Make = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]
ON_FOUR = ["amuse/ddp", "adamw/fsdp", "anytime/fsdp", "amuse/fsdp/stopped"]
ON_TWO = ["amuse/ddp/two", "sf-adamw/fsdp", "command", "amuse/fsdp/resumed"]


@pytest.mark.parametrize("size", [1, 5, 12, 33])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 40])
def test_parts_hold_every_row_once_in_equally_many_batches(size: int, count: int, batch: int) -> None:
    parts = [list(Processes(index, count).parts(size, batch)) for index in range(count)]
    counted = [row for part in parts for rows, n in part for row in range(size)[rows] if n]
    assert sorted(counted) == list(range(size))
    for part in parts:
        assert len(part) == len(parts[0])
        for rows, n in part:
            taken = len(range(size)[rows])
            assert 1 <= taken <= batch
            assert n in (taken, 0)


@pytest.mark.parametrize(("size", "count"), [(12, 1), (12, 2), (12, 3), (12, 12)])
@pytest.mark.parametrize("batch", [None, 1, 4, 5, 40])
def test_rows_weigh_their_microbatches(size: int, count: int, batch: int | None) -> None:
    values = torch.arange(size, dtype=torch.float64) ** 2
    parts = [list(Processes(index, count).rows(size, batch)) for index in range(count)]
    seen = [row for part in parts for rows, _ in part for row in range(size)[rows]]
    assert seen == list(range(size))
    total = sum(weight * values[rows].mean() for part in parts for rows, weight in part) / count
    torch.testing.assert_close(total, values.mean())
    assert len({len(part) for part in parts}) == 1


def test_one_process_alone_needs_nothing() -> None:
    with init_distributed("cpu", sharded=False) as (processes, device):
        assert processes == ALONE
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
        assert processes.is_main
        assert processes.all_reduce_max(3) == 3
        assert processes.broadcast("a") == "a"
        assert processes.sum(torch.ones(2)).tolist() == [1, 1]


def test_a_device_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^device must be one .*, got 'meta': [^\n]+$"):
        usable("meta")


def test_a_numbered_gpu_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    expected = "device must be cpu or cuda under torchrun, got 'cuda:1'"
    with pytest.raises(ConfigError, match=expected), init_distributed("cuda:1", sharded=False):
        pass


def test_optimizers_that_need_whole_parameters_are_not_given_shards(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^parallel must be ddp for muon, got 'fsdp'"):
        train(tiny("muon", parallel="fsdp"), Silence())
    assert list(tmp_path.iterdir()) == []


def launch(folder: Path, count: int, cases: list[str]) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, "-m", "tests.programs.ranks", str(folder), *cases],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the runs on four and on two processes, and what was printed."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, launch(folder, 4, ON_FOUR) + launch(folder, 2, ON_TWO)


def ended(folder: Path, case: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], dict[str, Any]]:
    """Metrics, weights and summary of a case's only run."""
    (run,) = (ranks.config(case, folder).runs / "shakespeare").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    return RunFolder(run).metrics(), load_file(run / "model.safetensors"), summary


@pytest.mark.parametrize(
    "case",
    ["amuse/ddp", "amuse/ddp/two", "adamw/fsdp", "anytime/fsdp", "sf-adamw/fsdp", "amuse/fsdp/stopped"],
)
def test_more_processes_train_as_one_does(
    launched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """With DDP and FSDP2, microbatches, clipping and uneven shards, up to rounding.

    The stopped one went on from four processes to two, its shards divided anew.
    """
    monkeypatch.setitem(BUNDLED, "tiny", tiny_text())
    monkeypatch.setenv("AMUSE_LAB_DATA", str(tmp_path / "data"))
    alone = replace(ranks.config(case, tmp_path), parallel="ddp", micro_batch=None)
    train(alone, Silence())
    expected, found = ended(tmp_path, case), ended(launched[0], case)
    assert [(line["step"], line["split"]) for line in found[0]] == [
        (line["step"], line["split"]) for line in expected[0]
    ]
    for theirs, ours in zip(found[0], expected[0], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=2e-6)
    assert found[2]["status"] == "finished"
    assert found[2]["val_loss"] == pytest.approx(expected[2]["val_loss"], rel=1e-6)
    assert found[2]["parameters"] == expected[2]["parameters"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(launched: tuple[Path, str]) -> None:
    found = [(launched[0] / f"amuse-fsdp-stopped-{index}").read_text() for index in range(4)]
    assert found == ["step 2, signal 15"] * 4


def test_the_leading_process_speaks_for_all(launched: tuple[Path, str]) -> None:
    """The command under torchrun: one table, one run folder, and every process ends with status 0."""
    folder, printed = launched
    assert printed.count("run folder: ") == 1
    assert [(folder / f"command-{index}").read_text() for index in range(2)] == ["status 0"] * 2
    (run,) = (folder / "command" / "shakespeare").iterdir()
    assert json.loads((run / "env.json").read_text())["world_size"] == 2


def test_shards_of_one_process_are_a_run_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torchrun: fsdp on one process, then its checkpoint again."""
    monkeypatch.setitem(BUNDLED, "tiny", tiny_text())
    monkeypatch.setenv("AMUSE_LAB_DATA", str(tmp_path / "data"))
    config = ranks.config("adamw/fsdp", tmp_path)
    whole = train(replace(config, parallel="ddp"), Silence())
    sharded = train(config, Silence())
    ours, theirs = (load_file(run.folder / "model.safetensors") for run in (whole, sharded))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)
    again = train(config, Silence(), resume=sharded.folder)
    torch.testing.assert_close(load_file(again.folder / "model.safetensors"), theirs, rtol=0, atol=0)
    assert not dist.is_initialized()
