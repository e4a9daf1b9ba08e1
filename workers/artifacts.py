"""Content-addressed files: the weights of networks.

An artefact's address is the sha256 of its bytes; its name is the address and a suffix. A file that
has its name is complete.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workers.whole_files import room, write_whole


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
            self._write(data, address + suffix)
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
            with room(self._cache):
                partial = local.with_name(f"{local.name}.{uuid.uuid4().hex}.part")
                self._fs.get_file(found, str(partial))
                os.replace(partial, local)
        return local

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
            if name.startswith(address):
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

    def _write(self, content: bytes, name: str) -> None:
        final = f"{self._folder(name)}/{name}"
        if self._is_local:
            write_whole(Path(final), content)
            return
        self._fs.makedirs(self._folder(name), exist_ok=True)
        with self._fs.open(final, "wb") as target:
            target.write(content)
