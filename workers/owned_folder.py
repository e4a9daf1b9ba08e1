"""Temporary folders that go with their owner, at the latest when another one begins.

Built on ``flock``: the kernel takes the lock from an owner that dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_LOCK_FILE = "owner"


class OwnedFolder:
    """A temporary folder whose name begins with ``prefix``. Those of dead owners are removed."""

    def __init__(self, prefix: str) -> None:
        root = Path(tempfile.gettempdir())
        for left in root.glob(f"{prefix}*"):
            _remove_if_left(left)
        # It gets its name when it is locked, so that nobody takes it for one that was left.
        new = Path(tempfile.mkdtemp(prefix=f"new-{prefix}", dir=root))
        self._lock = os.open(new / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = new.rename(root / new.name.removeprefix("new-"))

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # somebody else's, or gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
