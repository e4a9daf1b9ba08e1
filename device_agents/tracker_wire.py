"""The tracker's wire protocol, in plain sockets with deadlines.

All integers are little-endian int32. A connection starts with the magic number, sent and received
back; then come frames of length and JSON text, a request ``[code, ...]`` and its answer.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

TRACKER_MAGIC = 0x2F271
RPC_MAGIC = 0xFF271
RPC_MISMATCH = RPC_MAGIC + 2

SUCCESS, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING_MATCHKEYS = 0, 3, 4, 5, 6, 7

_MAX_FRAME_BYTES = 1 << 20


class TrackerUnreachable(ConnectionError):
    """No tracker answered at the address in time."""


@dataclass(frozen=True)
class DeviceEntry:
    """A device server that is registered with the tracker, free or leased."""

    key: str
    host: str
    port: int


@dataclass(frozen=True)
class QueueEntry:
    """The state of one key: devices on offer, and requests that wait for one."""

    free: int
    pending: int


@dataclass(frozen=True)
class TrackerSummary:
    """What a tracker knows. It neither knows who holds a device nor whether one is alive."""

    devices: tuple[DeviceEntry, ...]
    queues: dict[str, QueueEntry]

    def keys(self) -> list[str]:
        """Keys under which there is a device, sorted."""
        return sorted({device.key for device in self.devices})

    def lists(self, key: str, port: int | None = None) -> bool:
        """Whether a device with this key (and port) is registered."""
        return any(d.key == key and port in (None, d.port) for d in self.devices)

    def registered(self, key: str) -> int:
        """How many devices of this key there are, leased ones included."""
        return sum(device.key == key for device in self.devices)

    def free(self, key: str) -> int:
        """How many devices of this key are on offer."""
        return self.queues[key].free if key in self.queues else 0


def pack_int(value: int) -> bytes:
    """One little-endian int32."""
    return struct.pack("<i", value)


def unpack_int(data: bytes | bytearray) -> int:
    """The little-endian int32 that ``data`` starts with."""
    return int(struct.unpack_from("<i", data)[0])


def pack_frame(message: Any) -> bytes:
    """A tracker frame: length and JSON text."""
    text = json.dumps(message).encode()
    return pack_int(len(text)) + text


def take_frame(data: bytearray) -> Any:
    """Remove and return the first complete frame of ``data``; None while it is incomplete.

    Raises ``ValueError`` for a length no tracker sends, or text that is not JSON.
    """
    if len(data) < 4:
        return None
    size = unpack_int(data)
    if not 0 < size <= _MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes was announced")
    if len(data) < 4 + size:
        return None
    message = json.loads(data[4 : 4 + size])
    del data[: 4 + size]
    return message


class TrackerConnection:
    """A client's connection to a tracker; every wait ends at a deadline."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """Connect within ``timeout_s`` seconds. Raises ``TrackerUnreachable``."""
        self.address = f"{host}:{port}"
        deadline = time.monotonic() + timeout_s
        try:
            self._sock = socket.create_connection((host, port), timeout=max(timeout_s, 0.001))
        except OSError as error:
            raise TrackerUnreachable(f"no tracker at {self.address}: {error}") from error
        try:
            self._send(pack_int(TRACKER_MAGIC), deadline)
            magic = unpack_int(self._receive(4, deadline))
        except (OSError, ValueError) as error:
            self.close()
            raise TrackerUnreachable(
                f"no answer from a tracker at {self.address}: {error}"
            ) from error
        if magic != TRACKER_MAGIC:
            self.close()
            raise TrackerUnreachable(f"what answers at {self.address} is no tracker")

    def ask(self, message: list[Any], deadline: float) -> Any:
        """Send a request and return its answer.

        ``deadline`` is in ``time.monotonic`` seconds. Raises ``TimeoutError`` when it passes and
        ``TrackerUnreachable`` when the tracker goes away.
        """
        try:
            self._send(pack_frame(message), deadline)
            size = unpack_int(self._receive(4, deadline))
            if not 0 < size <= _MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes was announced")
            return json.loads(self._receive(size, deadline))
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise TrackerUnreachable(f"lost the tracker at {self.address}: {error}") from error

    def close(self) -> None:
        """Close the connection; the tracker forgets what was asked through it."""
        self._sock.close()

    def __enter__(self) -> TrackerConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_timeout(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)

    def _send(self, data: bytes, deadline: float) -> None:
        self._set_timeout(deadline)
        self._sock.sendall(data)

    def _receive(self, size: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._set_timeout(deadline)
            chunk = self._sock.recv(min(size - len(data), 65536))
            if not chunk:
                raise ConnectionResetError("connection closed")
            data += chunk
        return data


def tracker_summary(host: str, port: int, timeout_s: float = 5.0) -> TrackerSummary:
    """Ask the tracker for its devices and queues, within ``timeout_s`` seconds.

    Raises ``TrackerUnreachable`` when it is not there, does not answer in time, or is no tracker.
    """
    deadline = time.monotonic() + timeout_s
    with TrackerConnection(host, port, timeout_s) as connection:
        try:
            answer = connection.ask([SUMMARY], deadline)
        except TimeoutError:
            raise TrackerUnreachable(
                f"the tracker at {host}:{port} did not answer within {timeout_s:g} s"
            ) from None
    return parse_summary(answer)


def parse_summary(answer: Any) -> TrackerSummary:
    """Read the tracker's answer; ports come as numbers from some servers, as text from others.

    Raises ``TrackerUnreachable`` for an answer that is no summary.
    """
    try:
        code, status = answer
        if code != SUCCESS:
            raise ValueError(f"code {code}")
        devices = tuple(
            DeviceEntry(
                key=str(info["key"]).partition(":")[2],
                host=str(info["addr"][0]),
                port=int(info["addr"][1]),
            )
            for info in status["server_info"]
        )
        queues = {
            str(key): QueueEntry(free=int(queue["free"]), pending=int(queue["pending"]))
            for key, queue in status["queue_info"].items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TrackerUnreachable(f"the tracker's summary is not understood: {error}") from error
    return TrackerSummary(devices=devices, queues=queues)
