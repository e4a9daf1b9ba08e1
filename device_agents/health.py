"""Whether a device still answers, and whether it is as fast as it was."""

from __future__ import annotations

import socket

from device_agents.device_functions import CANARY
from device_agents.session import Session
from device_agents.tracker_wire import RPC_MAGIC, RPC_MISMATCH, pack_int

_NOBODY = b"client:".ljust(256, b"-")  # TVM's tvm_rpc hangs up on one shorter than its own


def answers(host: str, port: int, timeout_s: float) -> bool:
    """Whether the device's server answers a stranger within ``timeout_s`` seconds, busy or not.

    It is greeted with a match key that is nobody's, and refuses it. A server that was killed, that
    is frozen or out of reach does not.
    """
    greeting = pack_int(RPC_MAGIC) + pack_int(len(_NOBODY)) + _NOBODY
    refusal = pack_int(RPC_MISMATCH)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as sock:
            sock.sendall(greeting)
            return sock.recv(len(refusal), socket.MSG_WAITALL) == refusal
    except OSError:
        return False


class Canary:
    """Times a fixed small workload on a session's device, relative to its first time there.

    A ratio well above 1 means that the device is throttled or shared: what was measured meanwhile
    is not to be compared with what was measured before.
    """

    def __init__(self, session: Session) -> None:
        """Times the workload for the first time (some 20 ms on the device).

        Raises ``LookupError`` for a device that has no such workload: another agent's server.
        """
        self._function = session.function(CANARY)
        if self._function is None:
            raise LookupError("the device has no canary")
        self.first_ms = self.time_ms()

    def time_ms(self) -> float:
        """Milliseconds the workload takes on the device now, on one core."""
        return float(self._function())

    def ratio(self) -> float:
        """Time of the workload now over its first time, for ``Measurement.canary_ratio``."""
        return self.time_ms() / self.first_ms
