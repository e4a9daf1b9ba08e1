"""Messages over a stream socket: JSON with binary attachments, partial reads and deadlines.

A message is a dictionary. Its values are JSON, except that ``bytes`` may stand at the top level;
they travel unencoded behind the JSON. On the wire: length of the header (8 bytes, big endian), the
header ``{"body": {...}, "blobs": [[name, size], ...]}``, then the attachments in that order.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct(">Q")
_MAX_HEADER_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_TICK_S = 0.2


class StreamClosed(ConnectionError):
    """The other end closed the stream, in the middle of a message or between two."""


class BadFrame(ValueError):
    """The bytes received are no message of this protocol."""


def _nothing() -> None:
    return None


class Frames:
    """One end of a message stream. Not for use by two threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, 0)

    def close(self) -> None:
        """Close the stream; the other end sees its end."""
        self._sock.close()

    def send(
        self,
        message: dict[str, Any],
        deadline: float | None = None,
        on_tick: Callable[[], None] = _nothing,
    ) -> None:
        """Send one message before ``deadline`` (``time.monotonic`` seconds; None waits for ever).

        ``on_tick`` is called about five times a second while waiting and may raise. Raises
        ``TimeoutError``, ``StreamClosed``, or ``TypeError`` for a value that JSON does not know.
        """
        blobs = {k: v for k, v in message.items() if isinstance(v, bytes | bytearray)}
        body = {k: v for k, v in message.items() if k not in blobs}
        sizes = [[name, len(blob)] for name, blob in blobs.items()]
        header = json.dumps({"body": body, "blobs": sizes}).encode()
        for part in (_LENGTH.pack(len(header)) + header, *blobs.values()):
            self._send_bytes(memoryview(part), deadline, on_tick)

    def receive(
        self, deadline: float | None = None, on_tick: Callable[[], None] = _nothing
    ) -> dict[str, Any]:
        """Receive one message; arguments and errors as for ``send``, and ``BadFrame``."""
        (size,) = _LENGTH.unpack(self._receive_bytes(_LENGTH.size, deadline, on_tick))
        if size > _MAX_HEADER_BYTES:
            raise BadFrame(f"a header of {size} bytes was announced")
        try:
            header = json.loads(self._receive_bytes(size, deadline, on_tick))
            message: dict[str, Any] = dict(header["body"])
            blobs = [(str(name), int(length)) for name, length in header["blobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadFrame(f"not a message header: {error}") from error
        for name, length in blobs:
            message[name] = bytes(self._receive_bytes(length, deadline, on_tick))
        return message

    def _wait(self, event: int, deadline: float | None, on_tick: Callable[[], None]) -> None:
        self._poll.modify(self._sock, event)
        while True:
            tick = _TICK_S
            if deadline is not None:
                tick = min(tick, deadline - time.monotonic())
                if tick <= 0:
                    raise TimeoutError
            if self._poll.poll(max(1.0, tick * 1000)):
                return
            on_tick()

    def _send_bytes(
        self, data: memoryview, deadline: float | None, on_tick: Callable[[], None]
    ) -> None:
        while data:
            try:
                data = data[self._sock.send(data[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline, on_tick)
            except OSError as error:
                raise StreamClosed(str(error)) from error

    def _receive_bytes(
        self, size: int, deadline: float | None, on_tick: Callable[[], None]
    ) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            try:
                count = self._sock.recv_into(view[filled : filled + _CHUNK_BYTES])
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, on_tick)
                continue
            except OSError as error:
                raise StreamClosed(str(error)) from error
            if count == 0:
                raise StreamClosed("end of stream")
            filled += count
        return data
