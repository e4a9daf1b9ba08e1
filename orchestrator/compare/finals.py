"""The last measurement: the final networks of all methods, on one device, one after the other.

Each is compared with the dense network and with ours, in pairs taken in turns, so that what drifts
on the device in between cancels out; and all of that several times over, since what else a machine
does at the moment costs networks of different sizes differently.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from device_agents.host_cores import lock_dir
from orchestrator.compare.methods import DENSE, OURS
from schemas.base import Schema, content_key
from schemas.config import MeasureConfig
from schemas.table import Comparison
from schemas.target import TargetConfig
from workers.measuring.gauge import Gauge, ProgramFailed
from workers.measuring.occasions import OCCASIONS, ratios_of, together


class Finals(Schema):
    """Comparisons by method; ``key`` names the libraries that were measured. ``failed``: methods
    whose library does not run, with the reason; they have no comparisons."""

    key: str
    beside_dense: dict[str, tuple[Comparison, ...]]
    beside_ours: dict[str, tuple[Comparison, ...]]
    failed: dict[str, str] = Field(default_factory=dict)

    def over_dense(self, method: str) -> tuple[float, ...]:
        """Dense / the method's latency, comparison by comparison."""
        return ratios_of(self.beside_dense[method])

    def over_ours(self, method: str) -> tuple[float, ...]:
        """The method's / our latency, comparison by comparison."""
        return tuple(1.0 / ratio for ratio in ratios_of(self.beside_ours.get(method, ())))

    def latency_ms(self, method: str) -> float:
        """The method's latency in ms; the dense network's beside ours."""
        if method == DENSE:
            return together([found.reference for found in self.beside_dense[OURS]]).latency_ms
        return together([found.candidate for found in self.beside_dense[method]]).latency_ms


def measure_finals(
    libraries: Mapping[str, Path],
    input_shape: tuple[int, ...],
    target: TargetConfig,
    measure: MeasureConfig,
    kept: Finals | None,
    report: Callable[[str], None],
) -> Finals:
    """Measure the libraries of all methods, the dense one's among them; ``kept`` if it is of these
    and none of them failed.

    Raises ``DeviceLost``, ``NoDevice`` or ``TrackerUnreachable`` where no device answers,
    ``ProgramFailed`` where the dense library or ours does not run, ``UserError`` for a target that
    is out of reach.
    """
    key = content_key({method: _digest(path) for method, path in sorted(libraries.items())})
    if kept is not None and kept.key == key and not kept.failed:
        return kept
    from workers.measuring.setup import open_device

    plain = target.model_copy(update={"recording": None})
    with tempfile.TemporaryDirectory(prefix="cprune-finals-") as folder:
        device = open_device(plain, measure, lock_dir(), Path(folder))
        try:
            return compare_all(device.gauge, key, libraries, input_shape, report)
        finally:
            device.close()


def compare_all(
    gauge: Gauge,
    key: str,
    libraries: Mapping[str, Path],
    input_shape: tuple[int, ...],
    report: Callable[[str], None],
) -> Finals:
    """Each method beside the dense network and beside ours, occasion by occasion. One whose library
    fails is compared no further: hours of the others' searches do not hang on it."""
    beside: dict[str, dict[str, tuple[Comparison, ...]]] = {DENSE: {}, OURS: {}}
    failed: dict[str, str] = {}
    for occasion in range(OCCASIONS):
        report(f"measuring all, {occasion + 1} of {OCCASIONS} times")
        for reference, found in beside.items():
            if reference not in libraries:
                continue
            for method, path in libraries.items():
                if method in (DENSE, reference, *failed):
                    continue
                question = f"finals:{reference}:{method}:{occasion}"
                try:
                    comparison = gauge.compare(question, libraries[reference], path, input_shape)
                except ProgramFailed as error:
                    if method == OURS:
                        raise
                    failed[method] = f"its final library failed on the device: {error}"
                    continue
                found[method] = (*found.get(method, ()), comparison)
    dense, ours = (
        {method: comparisons for method, comparisons in found.items() if method not in failed}
        for found in beside.values()
    )
    return Finals(key=key, beside_dense=dense, beside_ours=ours, failed=failed)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
