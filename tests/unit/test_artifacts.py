"""The artefact store: addresses are contents, and a file that has its name is whole."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from workers.artifacts import ArtifactMissing, ArtifactStore
from workers.whole_files import DiskFull


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    local = request.param == "local"
    return ArtifactStore(str(tmp_path / "a b") if local else f"memory://{tmp_path.name}")


def test_bytes_come_back_by_their_address(store: ArtifactStore) -> None:
    address = store.put_bytes(b"weights", ".safetensors")
    assert address == hashlib.sha256(b"weights").hexdigest()
    assert store.get_bytes(address) == b"weights"
    path = store.local_path(address)
    assert path.read_bytes() == b"weights" and path.suffix == ".safetensors"
    assert store.local_path(address) == path
    assert store.put_bytes(b"weights", ".safetensors") == address


@pytest.mark.parametrize("name", ["run[1]", "a]b", "a::b", "memory::x", "*", "{a,b}", "#1?"])
def test_a_folders_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    root = tmp_path / name / "artifacts"
    store = ArtifactStore(str(root))
    address = store.put_bytes(b"weights", ".safetensors")
    assert store.get_bytes(address) == b"weights"
    assert store.local_path(address) == root / address[:2] / f"{address}.safetensors"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [store.local_path(address)]


def test_a_missing_artefact_is_named(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="holds no artefact " + "0" * 64):
        store.local_path("0" * 64)


def test_a_torn_file_is_not_an_artefact(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    address = hashlib.sha256(b"whole").hexdigest()
    folder = tmp_path / address[:2]
    folder.mkdir()
    (folder / f".{address}.json.abc").write_bytes(b"who")
    with pytest.raises(ArtifactMissing):
        store.get_bytes(address)
    store.put_bytes(b"whole", ".json")
    assert store.get_bytes(address) == b"whole"


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="is full: free some space") as error:
        store.put_bytes(b"weights", ".bin")
    assert error.value.errno == errno.ENOSPC
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
