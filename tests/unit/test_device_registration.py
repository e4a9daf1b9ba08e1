"""A device server's standing with the tracker, and that its folder is its own."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agents import server_loop
from device_agents.registration import Registration
from device_agents.server_loop import DeviceServer, FolderInUse
from device_agents.tracker_wire import SUCCESS, TRACKER_MAGIC, pack_frame, pack_int, take_frame


class FakeTracker:
    """Greets each server and agrees to all it says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.told: list[Any] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self.listener.accept()[0] as client:
            client.recv(4)
            client.sendall(pack_int(TRACKER_MAGIC))
            read = bytearray()
            while data := client.recv(4096):
                read += data
                while (frame := take_frame(read)) is not None:
                    self.told.append(frame)
                    client.sendall(pack_frame(SUCCESS))


@pytest.fixture
def tracker() -> Iterator[FakeTracker]:
    running = FakeTracker()
    yield running
    running.listener.close()


def until(registration: Registration, lines: list[str], wanted: str) -> None:
    """Run its loop until it has said that."""
    for _ in range(1000):
        if any(wanted in line for line in lines):
            return
        registration.tick()
        poll = select.poll()
        if (fd := registration.fileno()) is not None:
            poll.register(fd, registration.events())
        for _ in poll.poll(20):
            registration.handle()
    raise AssertionError(f"never said {wanted!r}: {lines}")


def test_it_says_when_the_device_is_on_offer(tracker: FakeTracker) -> None:
    lines: list[str] = []
    registration = Registration(("127.0.0.1", tracker.port), "pi5", 9091, lines.append)
    registration.offer()
    until(registration, lines, "the device is on offer")
    assert lines == [f"key 'pi5', tracker 127.0.0.1:{tracker.port}: the device is on offer"]
    assert registration.matchkey is not None and tracker.told


def silent_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def addresses(*ports: int) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]


def try_again(registration: Registration) -> None:
    """One more attempt, to its end."""
    registration._retry_at = 0.0
    registration.tick()
    while (fd := registration.fileno()) is not None and registration._state != "up":
        poll = select.poll()
        poll.register(fd, registration.events())
        assert poll.poll(5000), "neither an answer nor a refusal"
        registration.handle()


def test_it_says_once_why_the_tracker_cannot_be_reached() -> None:
    lines: list[str] = []
    registration = Registration(("127.0.0.1", silent_port()), "pi5", 9091, lines.append)
    registration.offer()
    for _ in range(4):
        try_again(registration)
        assert registration.fileno() is None
    assert len(lines) == 1 and "refused; asked again until it answers" in lines[0]


def test_reasons_that_take_turns_are_told_once_each_until_it_answers(
    tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = addresses(silent_port())
    unreachable = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("255.255.255.255", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [unreachable, *found])
    lines: list[str] = []
    registration = Registration(("board.local", 9), "pi5", 9091, lines.append)
    registration.offer()
    for _ in range(6):
        try_again(registration)
    assert len(lines) == 2 and lines[0] != lines[1]
    found[:] = addresses(tracker.port)
    until(registration, lines, "the device is on offer")
    tracker.listener.close()
    registration._drop(0.0, "it closed the connection")
    for _ in range(6):
        try_again(registration)
    assert len(lines) > 4, "a tracker that went away is told anew"


def test_all_addresses_of_the_trackers_name_are_tried(
    tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = addresses(silent_port(), tracker.port)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    lines: list[str] = []
    registration = Registration(("localhost", tracker.port), "pi5", 9091, lines.append)
    registration.offer()
    until(registration, lines, "the device is on offer")
    assert registration._next_address()[1] == ("127.0.0.1", tracker.port), "it answered last"


def test_a_name_is_not_looked_up_during_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = silent_port()
    lookups: list[str] = []

    def found(host: str, port: int, **_: Any) -> list[Any]:
        lookups.append(host)
        return addresses(silent)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    registration = Registration(("board.local", 9190), "pi5", 9091, lambda _: None)
    registration.offer()
    registration.tick()
    registration.take()
    for _ in range(3):
        registration._drop(0.0, "gone")
        registration.tick()
    assert len(lookups) == 1
    registration.offer()
    registration._drop(0.0, "gone")
    registration.tick()
    assert len(lookups) == 2


def server(folder: Path) -> DeviceServer:
    return DeviceServer(("127.0.0.1", 9), "pi5", host="127.0.0.1", work_dir=folder, max_lease_s=60)


def test_two_servers_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_loop, "_LOCK_WAIT_S", 0.0)
    first = server(tmp_path)
    with pytest.raises(FolderInUse, match="a --work-dir of its own"):
        server(tmp_path)
    assert json.loads((tmp_path / "listening.json").read_text())["port"] == first.port
    os.close(first._lock)
    again = server(tmp_path)
    os.close(again._lock)


def test_what_others_have_in_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "session-of-somebody").mkdir()
    (tmp_path / "cprune-session-3").mkdir()
    os.close(server(tmp_path)._lock)
    assert (tmp_path / "session-of-somebody").is_dir()
    assert not (tmp_path / "cprune-session-3").exists()
