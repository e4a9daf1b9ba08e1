"""Whole networks as compiled libraries, and their comparison on the device."""

from __future__ import annotations

from pathlib import Path

from tvm.ir import save_json

from schemas.base import content_key
from schemas.config import RunConfig
from schemas.network import Trained
from schemas.work import Compared, CompareWork
from workers.compiling.builder import Builder
from workers.errors import UserError
from workers.measuring.gauge import Gauge, ProgramFailed
from workers.tuning.bundle import Bundles
from workers.tuning.trials import fastest
from workers.tuning.tuner import Tuner


class NetworkLibraries:
    """Builds each network once for each set of its fastest programs."""

    def __init__(
        self,
        bundles: Bundles,
        tuner: Tuner,
        builder: Builder,
        gauge: Gauge,
        config: RunConfig,
        scratch: Path,
    ) -> None:
        self._bundles = bundles
        self._tuner = tuner
        self._builder = builder
        self._gauge = gauge
        self._config = config
        self._scratch = scratch

    def build(self, trained: Trained, fraction: float | None = None) -> tuple[Path, str]:
        """The network's library with the fastest programs stored now, and its content key.

        No program goes into it whose output was not compared with the untuned one's.

        Raises ``UserError`` when it does not build in ``tune.model_build_timeout_s``.
        """
        bundle = self._bundles.of_structure(trained.structure, fraction)
        self._tuner.check_fastest(bundle)
        stored = self._tuner.stored(bundle)
        programs = []
        identities = []
        for task_id in bundle.task_ids:
            best = fastest(stored[task_id])
            if best is not None:
                programs.append((self._bundles.text(bundle.workloads[task_id]), best.trace))
                identities.append(best.program_id)
        key = content_key(trained.weights, trained.structure, fraction, identities)
        path = self._scratch / f"network-{key[:24]}.so"
        if path.exists():
            return path, key
        weights = self._bundles.weights(trained, fraction)
        needed = {name: weights[name] for name in bundle.relax.parameters}
        partial = path.with_name(f"building-{path.name}")
        library = self._builder.build_network(
            str(save_json(bundle.relax.module)),
            programs,
            needed,
            partial,
            self._config.tune.model_build_timeout_s,
        )
        if library.error:
            raise UserError(
                "tune.model_build_timeout_s",
                f"the network's library did not build: {library.error}",
                "raise it if that was the time limit",
            )
        partial.rename(path)
        return path, key

    def compare(self, work: CompareWork) -> Compared:
        """Measure two networks, paired and interleaved. Raises ``ProgramFailed``."""
        device_s = self._gauge.device_s
        reference, reference_key = self.build(work.reference)
        candidate, candidate_key = self.build(work.candidate)
        key = f"compare:{work.label}:{reference_key}:{candidate_key}"
        try:
            comparison = self._gauge.compare(
                key, reference, candidate, work.reference.info.input_shape
            )
        except ProgramFailed as error:
            raise ProgramFailed(f"a whole network did not run on the device: {error}") from error
        self._gauge.release()
        return Compared(comparison=comparison, device_s=self._gauge.device_s - device_s)
