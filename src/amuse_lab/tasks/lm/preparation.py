"""Tokenizes text into shards, in rounds; after an interruption it continues, and writes the same bytes.

A round is one shard of training text and one of validation text, or one of them where the other got nothing.
Both are written, then the index that names them and says where the source goes on; within a round the tokens
are saved beside them every few million. Everything in a shard follows from the request alone, so that
repeating part of a round writes the same bytes again.
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
from amuse_lab.tasks.lm.index import SPLITS, Index, Request
from amuse_lab.tasks.lm.rounds import Round, discard
from amuse_lab.tasks.lm.sources import Document, Documents, Source
from amuse_lab.tasks.lm.tokenizer import MERGES, VOCAB, Tokenizer, TokenizerChoice, read_tokenizer
from amuse_lab.tasks.lm.workers import Chunk, tokenize_all

SHARD_TOKENS = 2**26  # 128 MiB of GPT-2's
_SAVE_TOKENS = 2**22  # within a round; the most a kill can cost, a minute on one core

_CHUNK_CHARACTERS = 2**20
_LOCK = ".lock"
_LEFTOVER = re.compile(
    rf"{re.escape(_LOCK)}|\..*\.(partial|tokens)|{re.escape(VOCAB)}|{re.escape(MERGES)}"
    rf"|({'|'.join(SPLITS)})-\d{{5}}\.bin"
)


@dataclass(frozen=True)
class Plan:
    """What to prepare, and how.

    Attributes:
        source: Opens the source; gets the identity of the one an unfinished folder began with.
        tokenizer: The tokenizer that is asked for, which is looked for or trained when it is needed.
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
        plan: What to prepare and how: the source, the tokenizer and how many tokens.
        folder: Folder that the shards are written to.
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
        discard(folder)
        return index

    current = Round.begun(folder, index)
    done = sum(index.count(split, "documents") for split in SPLITS)
    documents = source.documents(index.position if current.position is None else current.position)
    with closing(tokenize_all(_chunks(documents), tokenizer, plan.workers)) as stream:
        for chunk, tokenized in stream:
            before = index.count("train", "tokens")
            room = None if plan.tokens is None else plan.tokens - before - current.tokens[0]
            awaited = source.validation_documents - index.count("validation", "documents")
            enough = current.add(chunk, tokenized, room, awaited)
            report(done + sum(current.documents), before + current.tokens[0])
            if enough:
                break
            if sum(current.tokens) >= plan.shard_tokens:
                index = current.write(folder, index, tokenizer)
                done, current = done + sum(current.documents), Round()
            elif current.unsaved >= _SAVE_TOKENS:
                current.save(folder, index, tokenizer)
    return _finish(folder, index, tokenizer, current)


def _finish(folder: Path, index: Index, tokenizer: Tokenizer, last: Round) -> Index:
    """Write the last round, unless a split would be left without any text."""
    for number, split in enumerate(SPLITS):
        advice = "take more text or another --validation"
        if not last.tokens[number] and not index.entries(split):
            documents = sum(last.documents) + sum(index.count(each, "documents") for each in SPLITS)
            raise DataError(f"none of the {documents} documents is for {split}: {advice}")
        if not last.bytes[number] and not index.count(split, "bytes"):
            raise DataError(f"all documents for {split} are empty: {advice}")
    return last.write(folder, replace(index, complete=True), tokenizer)


def _require_ours(folder: Path) -> None:
    """Raise if a folder holds foreign files: error messages may advise users to remove the whole folder."""
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
    for document in source.documents(None):
        if not document.validation:
            yield document.text


def _chunks(documents: Documents) -> Iterator[Chunk]:
    """Group documents. Where a group ends follows from the documents since the last position alone."""
    group: list[Document] = []
    characters = 0

    def chunk() -> Chunk:
        validation = np.array([document.validation for document in group])
        return Chunk(
            [document.text for document in group], validation, documents.position(), documents.skipped
        )

    for document in documents:
        group.append(document)
        characters += len(document.text) + 1
        if characters >= _CHUNK_CHARACTERS:
            yield chunk()
            group, characters = [], 0
    if group:
        yield chunk()


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Context manager: lock a folder for this process; folders created for it are removed if left empty."""
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
