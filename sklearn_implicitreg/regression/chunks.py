"""Large tensors in chunks that stay in the cache, several of them read at a time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

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
        n_threads = torch.get_num_threads()
        if n_threads < 2:
            yield from map(self.read, self.starts)
            return
        waiting: deque[Future[T]] = deque()
        # One chunk is too small to share among threads: each thread has chunks of its own, and
        # torch and BLAS keep to one while chunks are read.
        with ThreadPoolExecutor(n_threads) as pool, threadpool_limits(1, "blas"):
            torch.set_num_threads(1)
            try:
                for start in self.starts:
                    waiting.append(pool.submit(self.read, start))
                    if len(waiting) > _AHEAD * n_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                torch.set_num_threads(n_threads)
                for future in waiting:
                    future.cancel()


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
