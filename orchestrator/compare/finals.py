"""The last measurement: the final networks of all methods, on one device, one after the other.

Each is compared with the dense network and with ours, in pairs taken in turns, so that what drifts
on the device in between cancels out.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from device_agents.host_cores import lock_dir
from orchestrator.compare.methods import DENSE, OURS
from schemas.base import Schema, content_key
from schemas.config import MeasureConfig, TargetConfig
from schemas.table import Comparison


class Finals(Schema):
    """Comparisons by method; ``key`` names the libraries that were measured."""

    key: str
    beside_dense: dict[str, Comparison]
    beside_ours: dict[str, Comparison]

    def over_dense(self, method: str) -> tuple[float, ...]:
        """Dense / the method's latency, pair by pair."""
        found = self.beside_dense[method]
        pairs = zip(found.reference_ms, found.candidate_ms, strict=True)
        return tuple(dense / own for dense, own in pairs)

    def over_ours(self, method: str) -> tuple[float, ...]:
        """The method's / our latency, pair by pair."""
        if method not in self.beside_ours:
            return ()
        found = self.beside_ours[method]
        pairs = zip(found.reference_ms, found.candidate_ms, strict=True)
        return tuple(own / ours for ours, own in pairs)

    def latency_ms(self, method: str) -> float:
        """The method's latency in ms; the dense network's beside ours."""
        if method == DENSE:
            return self.beside_dense[OURS].reference.latency_ms
        return self.beside_dense[method].candidate.latency_ms


def measure_finals(
    libraries: Mapping[str, Path],
    input_shape: tuple[int, ...],
    target: TargetConfig,
    measure: MeasureConfig,
    kept: Finals | None,
    report: Callable[[str], None],
) -> Finals:
    """Measure the libraries of all methods, the dense one's among them; ``kept`` if it is of these.

    Raises ``DeviceLost``, ``NoDevice`` or ``TrackerUnreachable`` where no device answers,
    ``ProgramFailed`` where a library does not run, ``UserError`` for a target that is out of reach.
    """
    key = content_key({method: _digest(path) for method, path in sorted(libraries.items())})
    if kept is not None and kept.key == key:
        return kept
    from workers.measuring.setup import open_device

    plain = target.model_copy(update={"recording": None})
    with tempfile.TemporaryDirectory(prefix="cprune-finals-") as folder:
        scratch = Path(folder)
        device = open_device(plain, measure, lock_dir(), scratch)
        try:
            beside: dict[str, dict[str, Comparison]] = {DENSE: {}, OURS: {}}
            for reference, found in beside.items():
                if reference not in libraries:
                    continue
                for method, path in libraries.items():
                    if method in (DENSE, reference):
                        continue
                    report(f"measuring {method} beside {reference}")
                    found[method] = device.gauge.compare(
                        f"finals:{reference}:{method}", libraries[reference], path, input_shape
                    )
        finally:
            device.close()
    return Finals(key=key, beside_dense=beside[DENSE], beside_ours=beside[OURS])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
