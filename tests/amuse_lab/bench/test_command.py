import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from amuse_lab.bench import measure
from amuse_lab.bench.contestants import CONTESTANTS, Contestant
from amuse_lab.bench.measure import Bench, interleaved, machine_set, ratio, time_rounds, timed
from amuse_lab.bench.naive import Naive
from amuse_lab.bench.sizes import SIZES, ParameterSet, gradients
from amuse_lab.cli import main
from amuse_lab.errors import RequestError
from amuse_lab.tasks.lm.model import Llama
from amuse_optim import AMUSE, param_groups
from tests.amuse_lab.conftest import TINY_MODEL

CPU = torch.device("cpu")
TINY = ParameterSet("1m", "a Llama", 3, lambda: Llama(TINY_MODEL))
SQUARE = ParameterSet("256-wide", "matrices", 2, lambda: nn.Linear(16, 16, bias=False))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter set is a small one."""
    monkeypatch.setattr("amuse_lab.bench.command.SIZES", dict.fromkeys(SIZES, TINY) | {"256-wide": SQUARE})


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hides a module."""
    from importlib.util import find_spec

    def hide(module: str) -> None:
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: None if name == module else find_spec(name)
        )

    return hide


@pytest.mark.parametrize("size", [TINY, SQUARE], ids=["llama", "matrices"])
@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_moves_every_parameter(name: str, size: ParameterSet) -> None:
    torch.manual_seed(0)
    model = size.build()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizers = CONTESTANTS[name].build(model)
    for _ in range(3):
        for parameter, gradient in zip(model.parameters(), gradients(before, 0), strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, was)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_examination_holds_for_every_contestant(name: str) -> None:
    contestant = CONTESTANTS[name]
    taken = Bench(TINY, CPU, torch.float32).examine(contestant)
    matrices = sum(p.numel() for n, p in Llama(TINY_MODEL).named_parameters() if "norm" not in n)
    assert taken.parameters > matrices
    assert taken.operations > taken.views
    assert taken.elements > taken.parameters
    muon = "adamw" not in name
    assert (taken.products > 0) is (taken.flops > 0) is muon
    if muon:  # qkv, projection, gate, up, projection; all do five steps of the quintic
        # Three products a step; in the Gram form, which the four that are not square take, 17 in all.
        assert taken.products == (15 + 4 * 17 if name.startswith("amuse") else 15 * 5)
    if name in ("naive", "sf-adamw", "amuse-adamw"):
        assert 8 <= taken.state_bytes / taken.parameters < 8.5


def test_retained_buffers_are_extra_memory() -> None:
    class Keeps(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # noqa: ARG002
            if not self.state:
                self.kept = torch.ones(1000)
                self.state[self.param_groups[0]["params"][0]]["moment"] = torch.ones(16)

    keeps = Contestant("keeps", "", lambda model: [Keeps(model.parameters(), lr=1.0)])
    taken = Bench(SQUARE, CPU, torch.float32).examine(keeps)
    assert (taken.state_bytes, taken.extra_bytes) == (64, 4000)


def test_the_naive_form_is_amuse() -> None:
    shared = {"lr": 0.01, "weight_decay": 0.1, "rho": 0.0}
    models, optimizers = [], []
    for naive in (True, False):
        torch.manual_seed(0)
        model = Llama(TINY_MODEL)
        groups = param_groups(model)
        if naive:
            plain = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
            optimizers.append(Naive(plain, **shared))
        else:
            bfloat16 = {"weight_lr_power": 0.0, "orthogonalize_dtype": torch.bfloat16}
            optimizers.append(AMUSE(groups, warmup_steps=0, **shared, **bfloat16))
        models.append(model)
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            parameters = list(model.parameters())
            for parameter, gradient in zip(parameters, gradients(parameters, step), strict=True):
                parameter.grad = gradient
            optimizer.step()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_sizes_are_as_described() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in size.build().parameters())
            for name, size in SIZES.items()
            if name != "124m"
        }
    millions = {name: round(count / 1e6, 1) for name, count in counts.items()}
    assert millions == {"1m": 0.9, "7m": 6.8, "30m": 29.4, "256-wide": 0.5}


def test_gradients_are_nearly_of_low_rank() -> None:
    parameters = [torch.ones(64, 96), torch.ones(64, dtype=torch.bfloat16)]
    matrix, vector = gradients(parameters, 1)
    singular = torch.linalg.svdvals(matrix)
    stable_rank = (singular / singular[0]).square().sum()
    assert 1 < stable_rank < 4
    assert singular[-1] > 0
    assert vector.dtype == torch.bfloat16
    assert torch.equal(gradients(parameters, 1)[0], matrix)
    assert not torch.equal(gradients(parameters, 2)[0], matrix)


def test_rounds_interleave_and_rotate() -> None:
    order = [name for _, name in interleaved(["a", "b", "c"], 4)]
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


def test_warmup_rounds_do_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def contestant(name: str) -> Callable[[int], float]:
        def step(i: int) -> float:
            calls.append((name, i))
            return float(i)

        return step

    times = time_rounds({name: contestant(name) for name in "ab"}, rounds=2, warmup=1)
    assert times == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_ratios_are_paired_by_round() -> None:
    # The second round was slow for everybody; the medians alone would say 4.
    assert ratio([2.0, 40.0, 4.0], [1.0, 20.0, 1.0]) == 2.0


def test_the_clock_sees_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    assert timed(lambda: None, CPU) == 2.5


def test_the_machine_is_set_and_given_back() -> None:
    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    with machine_set(threads=2, onednn=False):
        assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == (2, False)
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before


@pytest.mark.usefixtures("small")
def test_a_whole_run_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records" / "here"
    arguments = ["--only", "amuse", "adamw", "--rounds", "2", "--threads", "1", "--out", str(out)]
    assert main(["bench", "--sizes", "1m", "256-wide", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("| amuse | ") == 2
    assert printed.out.endswith(f"record: {out / 'bench.json'}\n")
    assert (out / "bench.md").read_text() in printed.out

    content = json.loads((out / "bench.json").read_text())
    assert content["complete"] is True
    assert content["environment"]["threads"] == 1
    assert content["versions"]["heavyball"] in (None, "3.2.1")
    assert content["environment"]["versions"]["torch"]
    assert (content["against"], content["dtype"], content["not_installed"]) == ("amuse", "float32", [])
    assert list(content["sizes"]) == ["1m", "256-wide"]
    for size in content["sizes"].values():
        assert list(size["contestants"]) == ["amuse", "adamw"]
        for measured in size["contestants"].values():
            assert len(measured["seconds"]) == 2
            assert 0 < measured["p10_seconds"] <= measured["median_seconds"]
        assert size["contestants"]["amuse"]["ratio"] == 1.0
        assert size["contestants"]["adamw"]["footprint"]["operations"] >= 1

    assert main(["bench", "--sizes", "1m", *arguments]) == 2
    assert "holds a record already" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_peer_that_is_not_installed_is_listed(
    without: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("heavyball")
    usual = {name: CONTESTANTS[name] for name in ("amuse", "heavyball", "adamw")}
    monkeypatch.setattr("amuse_lab.bench.command.CONTESTANTS", usual)
    assert main(["bench", "--sizes", "1m", "--rounds", "1"]) == 0
    assert "| heavyball | not installed |" in capsys.readouterr().out
    assert main(["bench", "--only", "heavyball"]) == 2
    error = capsys.readouterr().err
    assert error == "amuse-lab: heavyball is not installed: pip install heavyball\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "300m"], "unknown parameter set '300m'; did you mean '30m'?"),
        (["--only", "amus"], "unknown optimizer 'amus'; did you mean 'amuse'?"),
        (["--only", "adamw", "--against", "naive"], "unknown optimizer for --against: 'naive'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--rounds", "few"], "--rounds must be INT or None, got 'few'"),
        (["--rounds"], "--rounds needs a value"),
        (["--threads", "-1"], "--threads must be at least 1, got -1"),
        (["--device", "abacus"], "--device must be one that torch can use here, got 'abacus'"),
        (["--device", "meta"], "--device must be cpu or cuda, got 'meta'"),
        (["--dtype", "float16"], "unknown dtype 'float16'; did you mean"),
        (["--out", __file__], "cannot write a record in"),
        (["--round", "3"], "unknown option --round; did you mean --rounds?"),
        (["1m"], "unexpected argument '1m'"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"amuse-lab: {message}")
    assert printed.err.count("\n") == 1


def test_help_lists_sets_and_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SIZES, *CONTESTANTS, "--no-onednn"))


def test_a_contestant_that_fails_is_named() -> None:
    def build(_: nn.Module) -> list[torch.optim.Optimizer]:
        raise TypeError("no such thing\nmore")

    with pytest.raises(
        RequestError, match="fails cannot step 1m in float32 on cpu: TypeError: no such thing; le"
    ):
        Bench(TINY, CPU, torch.float32).examine(Contestant("fails", "", build))


def test_parameters_that_blow_up_are_refused() -> None:
    class Divides(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # noqa: ARG002
            self.param_groups[0]["params"][0].div_(0.0)

    divides = Contestant("divides", "", lambda model: [Divides(model.parameters(), lr=1.0)])
    with pytest.raises(RequestError, match="divides made parameters that are not finite on 1m"):
        Bench(TINY, CPU, torch.float32).examine(divides)
