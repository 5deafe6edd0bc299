"""Temporary folders of this process; those of processes that were killed are removed."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = "trajectory-"


def temporary_folder() -> tuple[Path, Callable[[], None]]:
    """A new folder, and what removes it in this process but not in its forks."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_name()}"):
        with contextlib.suppress(OSError):
            _remove_unused(lock)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    return folder, functools.partial(_remove, folder, os.getpid(), _locked(folder))


def _name() -> str:
    # Locks of other machines that share the folder may not be seen here.
    return f"sklearn_implicitreg-{platform.node()}.lock"


def _locked(folder: Path) -> int | None:
    """Descriptor of a lock that ends with the process, however that ends; None without locks."""
    if fcntl is None:
        return None
    new = folder / "new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _name())  # it is held when others can find it
    except OSError:
        os.close(descriptor)
        new.unlink()
        return None
    return descriptor


def _remove_unused(lock: Path) -> None:
    """Remove the folder of a lock that no process holds."""
    locks: Any = fcntl
    folder = lock.parent
    if locks is None or folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return
    descriptor = os.open(lock, os.O_RDWR)
    try:
        locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)  # raises OSError where it is held
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _remove(folder: Path, process: int, descriptor: int | None) -> None:
    if os.getpid() != process:
        return
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)
