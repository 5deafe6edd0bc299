"""A progress bar in plain text, for what takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_WIDTH = 30

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int, verbose: int) -> Iterator[T]:
    """Pass items on and, where ``verbose`` is above 0, print a bar of how many are done."""
    start = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        if verbose > 0 and total > 1:
            bar = "#" * (_WIDTH * done // total)
            line = f"\r{what} [{bar:<{_WIDTH}}] {done}/{total}, {time.perf_counter() - start:.1f} s"
            print(line, end="\n" if done == total else "", flush=True)  # noqa: T201
