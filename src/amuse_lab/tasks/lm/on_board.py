"""Text that needs no preparation by hand: it is tokenized when it is first used."""

from pathlib import Path

from amuse_lab.errors import unknown
from amuse_lab.files import data_root
from amuse_lab.tasks.lm.index import Index
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.sources import Plays
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

ON_BOARD = {"shakespeare": Plays}
"""Texts that packages carry, by name."""


def on_board(name: str, tokenizer: str, data: Path | None = None) -> Path:
    """Return the prepared folder of a text that a package carries, preparing it first if it is not there.

    Several processes may call this at once: one prepares, the others wait.

    Args:
        name: "shakespeare".
        tokenizer: "bytes", "gpt2" or "bpe-N".
        data: The folder that holds it, under the name NAME-TOKENIZER; the data root by default.

    Returns:
        What `open_tokens` takes.

    Raises:
        ConfigError: For an unknown name.
        DataError: If the text or the tokenizer is missing, or the folder cannot be written.
    """
    if name not in ON_BOARD:
        raise unknown("text", name, ON_BOARD)
    source = ON_BOARD[name]
    choice = TokenizerChoice(tokenizer)
    folder = (data_root() if data is None else data) / f"{name}-{tokenizer}"
    index = Index.read(folder)
    if index is None or not index.complete:
        prepare(Plan(lambda _: source(), choice), folder, wait=True)
    return folder
