"""Text to shards, in rounds: what a kill interrupts is done again from the last complete round, the same.

A round is one shard of training text and one of validation text, or one of them where the other got nothing.
Both are written, then the index that names them and says where the source goes on. Everything in a shard
follows from the request alone, so that repeating part of a round writes the same bytes again.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amuse_lab.errors import DataError, require
from amuse_lab.records import replacing
from amuse_lab.tasks.lm.index import SPLITS, Index, Request, ShardEntry
from amuse_lab.tasks.lm.shards import write_shard
from amuse_lab.tasks.lm.sources import Documents, Source
from amuse_lab.tasks.lm.tokenizer import MERGES, VOCAB, Tokenizer, TokenizerChoice, Tokens, read_tokenizer
from amuse_lab.tasks.lm.workers import Chunk, Tokenized, tokenize_all

SHARD_TOKENS = 2**26  # 128 MiB of GPT-2's; the most a kill can cost

_CHUNK_CHARACTERS = 2**20
_LOCK = ".lock"
_LEFTOVER = re.compile(
    rf"{re.escape(_LOCK)}|\..*\.partial|{re.escape(VOCAB)}|{re.escape(MERGES)}|({'|'.join(SPLITS)})-\d{{5}}\.bin"
)


@dataclass(frozen=True)
class Plan:
    """What to prepare, and how.

    Attributes:
        source: Opens the source; gets the identity of the one an unfinished folder began with.
        tokenizer: Which.
        tokens: Training tokens to stop after, at the end of a document; None takes all there are.
        workers: Processes that tokenize; changes nothing in the result.
        shard_tokens: Tokens after which a round of shards is written.
    """

    source: Callable[[Mapping[str, Any] | None], Source]
    tokenizer: TokenizerChoice
    tokens: int | None = None
    workers: int = 1
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        require(self.tokens is None or self.tokens >= 1, "--tokens", "at least 1", self.tokens)
        require(self.workers >= 1, "--workers", "at least 1", self.workers)


Report = Callable[[int, int], None]
"""Is told how many documents and training tokens there are so far."""


def prepare(plan: Plan, folder: Path, *, wait: bool = False, report: Report = lambda *_: None) -> Index:
    """Prepare a folder, or go on where an earlier call was interrupted, or check what is complete.

    Args:
        plan: What to prepare.
        folder: Where.
        wait: Whether to wait for another process that prepares the same folder.
        report: Is called after every chunk of documents.

    Returns:
        The index of the complete folder, every shard of which was written now or checked.

    Raises:
        DataError: If the source or the tokenizer cannot be read, the folder cannot be written or holds
            something else, a shard in it is damaged, or another process is preparing it.
    """
    try:
        with _locked(folder, wait=wait):
            return _prepare(plan, folder, report)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _prepare(plan: Plan, folder: Path, report: Report) -> Index:
    index = Index.read(folder)
    if index is None:
        _require_ours(folder)
    source = plan.source(None if index is None else index.request.source)
    request = Request(
        source=source.identity,
        tokenizer=plan.tokenizer.name,
        tokens=plan.tokens,
        shard_tokens=plan.shard_tokens,
    )
    if index is None:
        tokenizer = plan.tokenizer.make(lambda: _training_texts(source))
        index = Index(request, tokenizer.sha256, tokenizer.vocabulary, complete=False, position=None)
    else:
        _require_same(request, index.request, folder)
        tokenizer = read_tokenizer(request.tokenizer, index.sha256, folder)
        for split in SPLITS:
            for shard in index.open(folder, split):
                shard.verify()
    if index.complete:
        return index

    done = sum(index.count(split, "documents") for split in SPLITS)
    chunks = _chunks(source.documents(index.position), source, done)
    current = _Round()
    with closing(tokenize_all(chunks, tokenizer, plan.workers)) as stream:
        for chunk, tokenized in stream:
            before = index.count("train", "tokens")
            room = None if plan.tokens is None else plan.tokens - before - current.tokens[0]
            enough = current.add(chunk, tokenized, room)
            report(done + current.documents, before + current.tokens[0])
            if enough:
                break
            if sum(current.tokens) >= plan.shard_tokens:
                index = current.write(folder, index, tokenizer, chunk.position)
                done, current = done + current.documents, _Round()
    return _finish(folder, index, tokenizer, current)


def _finish(folder: Path, index: Index, tokenizer: Tokenizer, last: "_Round") -> Index:
    """Write the last round, unless a split would be left without any text."""
    for split, tokens, size in zip(SPLITS, last.tokens, last.bytes, strict=True):
        advice = "take more text or another --validation"
        if not tokens and not index.entries(split):
            documents = last.documents + sum(index.count(each, "documents") for each in SPLITS)
            raise DataError(f"none of the {documents} documents is for {split}: {advice}")
        if not size and not index.count(split, "bytes"):
            raise DataError(f"all documents for {split} are empty: {advice}")
    return last.write(folder, replace(index, complete=True), tokenizer, None)


def _require_ours(folder: Path) -> None:
    """Refuse a folder with anything but what an interrupted first round leaves: errors advise its removal."""
    for path in sorted(folder.iterdir()):
        if not _LEFTOVER.fullmatch(path.name):
            raise DataError(f"{folder} must be empty or prepared here before, but holds {path.name}")


def _require_same(request: Request, earlier: Request, folder: Path) -> None:
    wanted, found = ({**vars(each), **each.source} for each in (request, earlier))
    for name in ("tokenizer", *earlier.source, *request.source, "tokens", "shard_tokens"):
        if wanted.get(name) != found.get(name):
            raise DataError(
                f"{folder} was prepared with {name.replace('_', ' ')} {found.get(name)!r}, "
                f"not {wanted.get(name)!r}: choose another folder with --out, or remove it"
            )


def _training_texts(source: Source) -> Iterator[str]:
    for number, text in enumerate(source.documents(None)):
        if not source.is_validation(number):
            yield text


def _chunks(documents: Documents, source: Source, number: int) -> Iterator[Chunk]:
    """Group documents. Where a group ends follows from the documents since the last position alone."""
    texts: list[str] = []
    validation: list[bool] = []
    characters = 0
    for text in documents:
        texts.append(text)
        validation.append(source.is_validation(number))
        number += 1
        characters += len(text) + 1
        if characters >= _CHUNK_CHARACTERS:
            yield Chunk(texts, np.array(validation), documents.position())
            texts, validation, characters = [], [], 0
    if texts:
        yield Chunk(texts, np.array(validation), documents.position())


class _Round:
    """What has been tokenized since shards were last written; lists hold training, then validation.

    Attributes:
        tokens: How many.
        bytes: How long the documents are in UTF-8.
        documents: How many in all.
    """

    def __init__(self) -> None:
        self.tokens = [0, 0]
        self.bytes = [0, 0]
        self.documents = 0
        self._parts: list[list[Tokens]] = [[], []]
        self._documents = [0, 0]

    def add(self, chunk: Chunk, tokenized: Tokenized, room: int | None) -> bool:
        """Take in a chunk.

        Args:
            chunk: The documents.
            tokenized: Their tokens.
            room: Training tokens that are wanted still; None wants all.

        Returns:
            Whether that many are here: later documents are left out.
        """
        training = np.cumsum(np.where(chunk.validation, 0, tokenized.lengths))
        enough, taken = False, len(training)
        if room is not None and training[-1] >= room:
            enough, taken = True, int(np.searchsorted(training, room)) + 1
        lengths, sizes = tokenized.lengths[:taken], tokenized.bytes[:taken]
        tokens = tokenized.tokens[: lengths.sum()]
        for split, chosen in enumerate((~chunk.validation[:taken], chunk.validation[:taken])):
            self._parts[split].append(tokens[np.repeat(chosen, lengths)])
            self.tokens[split] += int(lengths[chosen].sum())
            self._documents[split] += int(chosen.sum())
            self.bytes[split] += int(sizes[chosen].sum())
        self.documents += taken
        return enough

    def write(self, folder: Path, index: Index, tokenizer: Tokenizer, position: Any) -> Index:
        """Write the shards, then the index with them in it, and return that.

        Args:
            folder: Where.
            index: Of everything before.
            tokenizer: Made the tokens.
            position: Where the source goes on.
        """
        if not index.train and not index.validation:
            for name, content in tokenizer.files.items():
                with replacing(folder / name) as partial:
                    partial.write_bytes(content)
        entries: dict[str, tuple[ShardEntry, ...]] = {}
        for number, split in enumerate(SPLITS):
            entries[split] = index.entries(split)
            if self.tokens[number]:
                name = f"{split}-{len(entries[split]):05}.bin"
                checksum = write_shard(folder / name, self._parts[number], index.sha256)
                entries[split] += (
                    ShardEntry(
                        name, self.tokens[number], self._documents[number], self.bytes[number], checksum
                    ),
                )
        index = replace(index, position=position, train=entries["train"], validation=entries["validation"])
        index.write(folder)
        return index


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder for this process; a folder that is left without an index is left without anything."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("w")
        except FileNotFoundError:  # another process has removed the folder in between
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise DataError(f"another process is preparing {folder}") from error
            if not _still_there(lock, file.fileno()):  # whoever held it before has removed it
                continue
            try:
                yield
            finally:
                lock.unlink()
                for place in made:
                    with suppress(OSError):  # not empty: something was prepared
                        place.rmdir()
            return


def _still_there(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
