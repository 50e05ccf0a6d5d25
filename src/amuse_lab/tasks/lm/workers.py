"""Tokenizing in several processes, in order.

Imports nothing heavy: every tokenizing process loads this module.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amuse_lab.errors import DataError
from amuse_lab.tasks.lm.tokenizer import Tokenizer, Tokens, storage

_AHEAD = 3  # chunks for each process: one in work, one waiting, one finished


@dataclass(frozen=True)
class Chunk:
    """Some documents in a row.

    Attributes:
        texts: Texts of the documents.
        validation: Which of them are for validation, shape (documents,), bool.
        position: Where the source goes on after them.
        skipped: Entries that the source has passed over since its beginning.
    """

    texts: Sequence[str]
    validation: NDArray[np.bool_]
    position: Any
    skipped: int


@dataclass(frozen=True)
class Tokenized:
    """The tokens of a chunk.

    Attributes:
        tokens: Tokens of all documents in order, each followed by the end-of-text token, shape (tokens,).
        lengths: Number of tokens of each document, with its end, shape (documents,).
        bytes: Length of each document in UTF-8, in bytes, shape (documents,).
    """

    tokens: Tokens
    lengths: NDArray[np.int64]
    bytes: NDArray[np.int64]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenized:
    """Tokenize documents and end each.

    Args:
        tokenizer: Tokenizer that encodes the texts and has the token that ends them.
        texts: Texts of the documents, at least one.
    """
    end = np.array([tokenizer.end_of_text], storage(tokenizer.vocabulary))
    encoded = tokenizer.encode(texts)
    return Tokenized(
        tokens=np.concatenate([part for tokens in encoded for part in (tokens, end)]),
        lengths=np.array([len(tokens) + 1 for tokens in encoded]),
        bytes=np.array([len(text.encode()) for text in texts]),
    )


def tokenize_all(
    chunks: Iterable[Chunk], tokenizer: Tokenizer, workers: int
) -> Generator[tuple[Chunk, Tokenized]]:
    """Tokenize chunks, which are read only as far ahead as the processes need.

    Args:
        chunks: Documents in groups, in order.
        tokenizer: Tokenizer to use in every process.
        workers: Processes; 1 tokenizes in this one.

    Yields:
        Each chunk with its tokens, in order.

    Raises:
        DataError: If a process dies.
    """
    if workers == 1:
        for chunk in chunks:
            yield chunk, tokenize(tokenizer, chunk.texts)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tokenizer,)
    )
    waiting: deque[tuple[Chunk, Future[Tokenized]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_tokenize_here, chunk.texts)))
            if len(waiting) == workers * _AHEAD:
                first, tokenized = waiting.popleft()
                yield first, tokenized.result()
        while waiting:
            first, tokenized = waiting.popleft()
            yield first, tokenized.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenizing process died, perhaps for want of memory; fewer --workers need less"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer
"""Tokenizer of a tokenizing process, set when it starts."""


def _begin(tokenizer: Tokenizer) -> None:
    """Prepare a tokenizing process."""
    global _tokenizer
    _tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent is gone, however it went: nobody else would end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tokenize_here(texts: Sequence[str]) -> Tokenized:
    return tokenize(_tokenizer, texts)
