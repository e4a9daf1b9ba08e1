"""Files that are there whole or not at all, whatever ends their writer."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class DiskFull(OSError):
    """There is no room for a file."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file. Raises ``DiskFull``."""
    with _whole_file(path) as file:
        file.write(data)


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file's content. Raises ``DiskFull``."""
    with source.open("rb") as original, _whole_file(path) as file:
        shutil.copyfileobj(original, file)


@contextmanager
def room(place: str | Path) -> Iterator[None]:
    """Say where there was no room: turns what a full disk raises into ``DiskFull``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            error.errno,
            f"the disk that holds {place} is full: free some space and run the same command again, "
            "nothing recorded so far is lost",
        ) from error


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Written under another name, flushed to the disk and renamed."""
    with room(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
