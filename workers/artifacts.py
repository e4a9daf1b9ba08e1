"""Content-addressed files: weights, workloads, libraries.

An artefact's address is the sha256 of its bytes; its name is the address and a suffix. A file that
has its name is complete: it was written under another one, flushed to the disk and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

_BLOCK = 1 << 20


class DiskFull(OSError):
    """There is no room for an artefact."""


class ArtifactMissing(FileNotFoundError):
    """No artefact has this address."""


class ArtifactStore:
    """Artefacts below a root: a local folder, or any location that fsspec knows.

    Several processes may write at once: equal content has an equal name.
    """

    def __init__(self, root: str) -> None:
        """``root`` with ``://`` in it is an fsspec address, any other the path of a folder."""
        self.root = root
        self._fs, path = (
            fsspec.core.url_to_fs(root)
            if "://" in root
            else (LocalFileSystem(), os.path.abspath(root))
        )
        self._path: str = path.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._cache = Path(self._path) if self._is_local else None

    def put_bytes(self, data: bytes, suffix: str = "") -> str:
        """Store bytes; their address. Storing them again does nothing."""
        address = hashlib.sha256(data).hexdigest()
        if self._find(address) is None:
            with _room(self.root):
                self._write(data, address + suffix)
        return address

    def put_file(self, path: str | os.PathLike[str], suffix: str | None = None) -> str:
        """Store a copy of a file, by default with the file's own suffix; its address."""
        source = Path(path)
        with source.open("rb") as file:
            address = hashlib.file_digest(file, "sha256").hexdigest()
        if self._find(address) is None:
            name = address + (source.suffix if suffix is None else suffix)
            with _room(self.root):
                self._write(source, name)
        return address

    def get_bytes(self, address: str) -> bytes:
        """The bytes under an address."""
        data: bytes = self._fs.cat_file(self._locate(address))
        return data

    def local_path(self, address: str) -> Path:
        """A local file with the artefact's content; fetched once from a remote root."""
        found = self._locate(address)
        if self._is_local:
            return Path(found)
        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="cprune-artifacts-"))
        local = self._cache / found.rsplit("/", 1)[-1]
        if not local.exists():
            with _room(str(self._cache)):
                partial = local.with_name(f"{local.name}.{uuid.uuid4().hex}.part")
                self._fs.get_file(found, str(partial))
                os.replace(partial, local)
        return local

    def exists(self, address: str) -> bool:
        """Whether an artefact has this address."""
        return self._find(address) is not None

    def _locate(self, address: str) -> str:
        found = self._find(address)
        if found is None:
            raise ArtifactMissing(f"{self.root} holds no artefact {address}")
        return found

    def _folder(self, address: str) -> str:
        return f"{self._path}/{address[:2]}"

    def _find(self, address: str) -> str | None:
        # Listed and compared, not globbed: a folder's name may hold brackets.
        folder = self._folder(address)
        for name in self._names(folder):
            if name.startswith(address) and not name.endswith(".part"):
                return f"{folder}/{name}"
        return None

    def _names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none where there is no such folder."""
        try:
            if self._is_local:
                return os.listdir(folder)
            return [path.rsplit("/", 1)[-1] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _write(self, content: bytes | Path, name: str) -> None:
        folder = self._folder(name)
        self._fs.makedirs(folder, exist_ok=True)
        final = f"{folder}/{name}"
        if not self._is_local:
            with self._fs.open(final, "wb") as target:
                _copy(content, target)
            return
        partial = f"{final}.{uuid.uuid4().hex}.part"
        try:
            with open(partial, "wb") as target:
                _copy(content, target)
                target.flush()
                os.fsync(target.fileno())
            os.replace(partial, final)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _copy(content: bytes | Path, target: Any) -> None:
    if isinstance(content, bytes):
        target.write(content)
        return
    with content.open("rb") as source:
        while block := source.read(_BLOCK):
            target.write(block)


@contextmanager
def _room(place: str) -> Iterator[None]:
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
