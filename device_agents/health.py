"""Whether a device is as fast as it was: a canary, timed before and after measurements."""

from __future__ import annotations

from device_agents.device_functions import CANARY
from device_agents.session import Session


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
