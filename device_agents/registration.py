"""A device server's standing with the tracker, without ever blocking its loop.

The tracker may go away for any length of time, freeze or come back empty: the registration connects
again and again, and offers the device again.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from device_agents.tracker_wire import (
    PENDING_MATCHKEYS,
    PUT,
    SUCCESS,
    TRACKER_MAGIC,
    UPDATE_INFO,
    pack_frame,
    pack_int,
    take_frame,
    unpack_int,
)

_RETRY_S = 0.5
_SILENCE_S = 5.0
_POLL_PENDING_S = 1.0
_UNUSED_S = 4.0
_ON_OFFER = "the device is on offer"


class Registration:
    """One connection to the tracker, kept up. Times are ``time.monotonic`` seconds.

    The owner polls ``fileno`` for ``events``, calls ``handle`` when one comes and ``tick`` now and
    then. It calls ``offer`` when the device is free and ``take`` when a client has come. ``tell``
    is given a line whenever the standing changes, for whoever started the server.
    """

    def __init__(
        self, tracker: tuple[str, int], key: str, port: int, tell: Callable[[str], None]
    ) -> None:
        self._tracker, self._key, self._port = tracker, key, port
        self._tell = tell
        self._told: set[str] = set()  # since it was last on offer
        self._addresses: list[tuple[socket.AddressFamily, tuple[Any, ...]]] = []
        self._attempts = 0
        self._sock: socket.socket | None = None
        self._state = "down"  # down -> connecting -> greeting -> up
        self._retry_at = 0.0
        self._input = bytearray()
        self._expected: deque[tuple[str, float]] = deque()  # answers to come, and since when
        self._free = False
        self._polled_at = 0.0
        self._taken_at: float | None = None
        self.matchkey: str | None = None
        """What a client must present now; None while the device is not on offer."""

    def fileno(self) -> int | None:
        """The descriptor to poll; None while there is no connection."""
        return self._sock.fileno() if self._sock else None

    def events(self) -> int:
        """What to poll the descriptor for."""
        return select.POLLOUT if self._state == "connecting" else select.POLLIN

    def offer(self) -> None:
        """The device is free: offer it to one client."""
        self._free = True
        self._put_if_due()

    def take(self) -> None:
        """A client has come: the offer is used up."""
        self._free, self.matchkey, self._taken_at = False, None, None

    def close(self) -> None:
        """Close the connection in a forked child, which has no part in it."""
        if self._sock:
            self._sock.close()

    def tick(self) -> None:
        """Connect when down, give up a silent tracker, renew an offer that nobody used."""
        now = time.monotonic()
        if self._state == "down":
            if now >= self._retry_at:
                self._connect(now)
            return
        if self._expected and now - self._expected[0][1] > _SILENCE_S:
            self._drop(now, f"no answer for {_SILENCE_S:g} s")
        elif self._state == "up" and self.matchkey and not self._expected:
            if self._taken_at is not None and now - self._taken_at > _UNUSED_S:
                self.matchkey, self._taken_at = None, None  # handed out, and nobody came
                self._put_if_due()
            elif now - self._polled_at >= _POLL_PENDING_S:
                self._polled_at = now
                self._send("pending", pack_frame([PENDING_MATCHKEYS]))

    def handle(self) -> None:
        """The descriptor is ready."""
        now = time.monotonic()
        if self._sock is None:
            return
        if self._state == "connecting":
            if code := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(now, os.strerror(code))
                return
            self._state = "greeting"
            self._expected.clear()
            self._send("magic", pack_int(TRACKER_MAGIC))
            return
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(now, "it closed the connection")
            return
        self._input += data
        try:
            self._consume()
        except (ValueError, LookupError) as error:
            self._drop(now, f"what answers there is no tracker of TVM's ({error})")

    def _consume(self) -> None:
        if self._state == "greeting":
            if len(self._input) < 4:
                return
            if unpack_int(self._input) != TRACKER_MAGIC:
                raise ValueError("not a tracker")
            del self._input[:4]
            self._expected.popleft()
            self._state = "up"
            self._attempts -= 1  # should it be lost, this address is tried first
            info = {"key": f"server:{self._key}", "addr": [None, self._port]}
            self._send("info", pack_frame([UPDATE_INFO, info]))
            self._put_if_due()
        while (answer := take_frame(self._input)) is not None:
            kind, _ = self._expected.popleft()
            if kind == "pending":
                waiting = isinstance(answer, list) and self.matchkey in answer
                if waiting or self.matchkey is None:
                    self._taken_at = None
                elif self._taken_at is None:
                    self._taken_at = time.monotonic()
            elif answer != SUCCESS:
                raise ValueError(f"the tracker refused {kind}: {answer}")
            elif kind == "put":
                self._told &= {_ON_OFFER}
                self._say(_ON_OFFER)

    def _put_if_due(self) -> None:
        if self._state == "up" and self._free and self.matchkey is None:
            self.matchkey = f"{self._key}:{secrets.token_hex(8)}"
            self._taken_at, self._polled_at = None, time.monotonic()
            self._send("put", pack_frame([PUT, self._key, [self._port, self.matchkey], None]))

    def _connect(self, now: float) -> None:
        self._retry_at = now + _RETRY_S
        try:
            family, address = self._next_address()
            self._sock = socket.socket(family, socket.SOCK_STREAM)
            self._sock.setblocking(False)
            code = self._sock.connect_ex(address)
        except OSError as error:
            self._drop(now, error.strerror or str(error))
            return
        if code not in (0, errno.EINPROGRESS):
            self._drop(now, os.strerror(code))
            return
        self._state = "connecting"
        self._expected.append(("connection", now))

    def _next_address(self) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
        """The tracker's addresses in turn. Its name may have become another one's: it is looked up
        again when all were tried, but not during a session, for that may take long."""
        known = len(self._addresses)
        tried_all = known == 0 or self._attempts % known == 0
        if tried_all and (self._free or not known):
            found = socket.getaddrinfo(*self._tracker, type=socket.SOCK_STREAM)
            self._addresses = [(family, address) for family, _, _, _, address in found]
            self._attempts = 0
        self._attempts += 1
        return self._addresses[(self._attempts - 1) % len(self._addresses)]

    def _send(self, kind: str, data: bytes) -> None:
        """Send a small frame; a tracker whose buffer is full of unread frames counts as gone."""
        if self._sock is None:
            return
        now = time.monotonic()
        self._expected.append((kind, now))
        try:
            sent = self._sock.send(data)
        except OSError:  # the connection is gone, or its buffer is full
            sent = 0
        if sent != len(data):
            self._drop(now, "it takes nothing")

    def _say(self, what: str) -> None:
        """Told once as long as the tracker stays away, or stays there."""
        if what not in self._told:
            self._told.add(what)
            self._tell(f"key '{self._key}', tracker {self._tracker[0]}:{self._tracker[1]}: {what}")

    def _drop(self, now: float, why: str) -> None:
        self._told.discard(_ON_OFFER)
        self._say(f"{why}; asked again until it answers")
        if self._sock:
            self._sock.close()
        self._sock, self._state, self._retry_at = None, "down", now + _RETRY_S
        self._input.clear()
        self._expected.clear()
        self.matchkey, self._taken_at = None, None
