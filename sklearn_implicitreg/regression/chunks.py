"""Large tensors in chunks that stay in the cache, several of them read at a time."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from threadpoolctl import ThreadpoolController

_FEW = 32  # chunks for which other threads cost more than they save
_AHEAD = 4  # chunks that wait for their reader, for each thread

S = TypeVar("S")
T = TypeVar("T")


class Chunks(Generic[T]):
    """Chunks in their order, read in other threads ahead of their reader."""

    def __init__(self, starts: Sequence[Any], read: Callable[[Any], T]):
        self.starts = starts
        self.read = read

    def then(self, function: Callable[[T], S]) -> Chunks[S]:
        """What a function makes of every chunk, also in the other threads."""
        read = self.read
        return Chunks(self.starts, lambda start: function(read(start)))

    def __iter__(self) -> Iterator[T]:
        """One chunk after the other."""
        # One chunk is too small to share among threads: each thread has chunks of its own.
        with _one_thread_each() as n_threads:
            if n_threads < 2 or len(self.starts) < _FEW:
                yield from map(self.read, self.starts)
                return
            waiting: deque[Future[T]] = deque()
            with ThreadPoolExecutor(n_threads) as pool:
                try:
                    for start in self.starts:
                        waiting.append(pool.submit(self.read, start))
                        if len(waiting) > _AHEAD * n_threads:
                            yield waiting.popleft().result()
                    while waiting:
                        yield waiting.popleft().result()
                finally:
                    for future in waiting:
                        future.cancel()


class _Limits:
    """How many readers there are, and what the first of them found."""

    lock = threading.Lock()
    readers = 0
    n_threads = 1
    blas: Any = None


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Keep torch and BLAS to one thread while chunks are read; how many threads they had."""
    # BLAS has one limit for the process: the first reader sets it, the last one lifts it. The
    # number of torch is that of the calling thread and of threads to come.
    with _Limits.lock:
        if not _Limits.readers:
            _Limits.n_threads = torch.get_num_threads()
            _Limits.blas = _blas().limit(limits=1, user_api="blas")
        _Limits.readers += 1
        n_threads = _Limits.n_threads
        torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        with _Limits.lock:
            torch.set_num_threads(n_threads)
            _Limits.readers -= 1
            if not _Limits.readers:
                _Limits.blas.restore_original_limits()


@functools.cache
def _blas() -> ThreadpoolController:
    """The libraries of BLAS that are loaded, looked for once."""
    return ThreadpoolController()


def mapped(function: Callable[[T], S], parts: Iterable[T]) -> Iterable[S]:
    """What a function makes of every part; of chunks, in the threads that read them."""
    return parts.then(function) if isinstance(parts, Chunks) else map(function, parts)


def chained(parts: Sequence[Iterable[T]]) -> Iterable[T]:
    """Several parts after each other, as chunks where one of them is."""
    if not any([isinstance(part, Chunks) for part in parts]):
        return itertools.chain.from_iterable(parts)
    every: list[Chunks[T]] = []
    for part in parts:
        if isinstance(part, Chunks):
            every.append(part)
        else:
            held = list(part)
            every.append(Chunks(range(len(held)), held.__getitem__))
    starts = [(i, start) for i, part in enumerate(every) for start in part.starts]
    return Chunks(starts, lambda at: every[at[0]].read(at[1]))
