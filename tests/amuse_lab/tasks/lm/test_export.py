"""Exported folders are loaded by transformers, whose model has to agree with ours."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError, RecordError
from amuse_lab.export import Request, parse, run
from amuse_lab.records import RunFolder
from amuse_lab.tasks.lm import export as module
from amuse_lab.tasks.lm.export import export
from amuse_lab.tasks.lm.index import Index
from amuse_lab.tasks.lm.index import Request as Preparation
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_lab.tasks.lm.tokenizer import BytePairTokenizer, train_byte_pairs

Make = Callable[..., RunConfig]

CONFIG = ModelConfig(
    n_embd=32, n_head=4, n_layer=2, context=40, vocabulary=300, mlp_multiple=16, rope_base=500.0
)


def saved(folder: Path, config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Llama:
    """A model with every weight far from its initial value, and its file."""
    torch.manual_seed(0)
    model = Llama(config).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


@pytest.fixture
def run_folder(tiny: Make) -> Path:
    config = tiny()
    folder = RunFolder.create(config, {})
    folder.write_model(config.task.build_model().state_dict())
    folder.close()
    return folder.path


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return train_byte_pairs("bpe-270", 270, ["To be, or not to be, that is the question. " * 20])


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_computes_the_same_logits(tmp_path: Path, tied: bool) -> None:
    config = replace(CONFIG, tied=tied)
    model = saved(tmp_path, config)
    export(tmp_path / "model.safetensors", config, tmp_path / "out")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(300, (3, 40))
    with torch.no_grad():
        logits = model(tokens)
        torch.testing.assert_close(theirs(tokens).logits, logits, rtol=0, atol=1e-4)
    assert logits.std() > 1
    assert theirs.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    saved(tmp_path, dtype=torch.bfloat16)
    export(tmp_path / "model.safetensors", CONFIG, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}


def test_the_tokenizer_gives_the_same_tokens(tmp_path: Path, tokenizer: BytePairTokenizer) -> None:
    saved(tmp_path)
    export(tmp_path / "model.safetensors", CONFIG, tmp_path / "out", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "To be,  or naïve?\n\n be 12\n"
    assert theirs(text)["input_ids"] == tokenizer.encode([text])[0].tolist()
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.model_max_length == 40
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert theirs.eos_token_id == config["eos_token_id"] == tokenizer.end_of_text


def test_a_run_is_exported_into_its_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(parse([str(run_folder)]))
    out = run_folder / "export"
    assert (
        capsys.readouterr().out == f"{out}: model.safetensors, config.json, no tokenizer: tokens are bytes\n"
    )
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    theirs = transformers.LlamaForCausalLM.from_pretrained(out)
    ours = load_file(run_folder / "model.safetensors")
    assert torch.equal(theirs.model.embed_tokens.weight, ours["embedding.weight"])


def test_prepared_text_gives_its_tokenizer(
    tmp_path: Path,
    tokenizer: BytePairTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found by the name in the run's config, or where --data says; a run is exported without it as well."""
    runs, data = tmp_path / "run", tmp_path / "data"
    runs.mkdir()
    saved(runs)
    content = {"task": {"name": "lm", "model": asdict(CONFIG), "data": "plays"}}
    (runs / "config.json").write_text(json.dumps(content))
    monkeypatch.setenv("AMUSE_LAB_DATA", str(data))
    run(Request(run=runs, out=tmp_path / "without", data=None))
    assert "no tokenizer: " in capsys.readouterr().out
    with pytest.raises(DataError, match="plays holds no prepared text"):
        run(Request(run=runs, out=tmp_path / "out", data=data / "plays"))

    (data / "plays").mkdir(parents=True)
    preparation = Preparation({}, tokenizer=tokenizer.name, tokens=None, shard_tokens=1)
    Index(preparation, tokenizer.sha256, 270, complete=True, position=None).write(data / "plays")
    for name, file in tokenizer.files.items():
        (data / "plays" / name).write_bytes(file)
    for out, place in (("found", None), ("named", data / "plays")):
        run(Request(run=runs, out=tmp_path / out, data=place))
        assert "tokenizer bpe-270" in capsys.readouterr().out
        assert (tmp_path / out / "merges.txt").read_bytes() == tokenizer.merges


def test_what_is_there_stays(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(RecordError, match="out exists already"):
        export(tmp_path / "model.safetensors", CONFIG, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_failure_leaves_nothing(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    before = set(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(RecordError, match=r"cannot write .*out: .*No space left on device"):
            export(tmp_path / "model.safetensors", CONFIG, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    (tmp_path / ".out.partial").mkdir()  # as a killed process leaves it
    (tmp_path / ".out.partial" / "half").touch()
    export(tmp_path / "model.safetensors", CONFIG, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}
    assert not (tmp_path / "out" / "half").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path, tokenizer: BytePairTokenizer) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    for config, message in (
        (replace(CONFIG, vocabulary=301), r"embedding.weight must be \(301, 32\), got \(300, 32\)"),
        (replace(CONFIG, tied=False), r"lm_head.weight must be \(300, 32\), got None"),
        (replace(CONFIG, n_layer=1), r"blocks.1.attention.projection.weight must be None, got \(32, 32\)"),
    ):
        with pytest.raises(DataError, match=message):
            export(path, config, tmp_path / "out")
    with pytest.raises(ConfigError, match="bpe-270 must be at most 256 tokens, as the model has, got 270"):
        export(path, replace(CONFIG, vocabulary=256), tmp_path / "out", tokenizer)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot read .*model\.safetensors"):
        export(path, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_are_no_runs_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run folder: No such file or directory: config\.json"):
        run(parse([str(tmp_path)]))
    for content, message in (
        ({"task": {"name": "sound"}}, "is a run of 'sound', which cannot be exported"),
        ({"task": {"name": "lm"}}, r"cannot use .*config\.json: 'model'"),
        ({"task": {"name": "lm", "model": {"depth": 3}}}, r"cannot use .*config\.json: .*depth"),
        ([], r"cannot use .*config\.json"),
    ):
        (run_folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            run(parse([str(run_folder)]))
    assert not (run_folder / "export").exists()


def test_a_run_without_weights_is_refused(run_folder: Path) -> None:
    (run_folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"cannot read .*model\.safetensors"):
        run(parse([str(run_folder)]))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_run_folder_is_not_waited_for(run_folder: Path, name: str, tmp_path: Path) -> None:
    (run_folder / name).unlink()
    os.mkfifo(run_folder / name)
    with pytest.raises(DataError, match=f"^{run_folder / name} must be a file$"):
        run(Request(run=run_folder, out=tmp_path / "out", data=None))


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="RUN_FOLDER"):
        parse([])
    with pytest.raises(ConfigError, match=r"unknown option --ot; did you mean --out\?"):
        parse(["runs", "--ot", "x"])
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    assert "transformers" in capsys.readouterr().out
