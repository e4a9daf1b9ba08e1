"""Tuner, builder and local device outside of a run, for benchmarks that tune networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn
from tvm.target import Target

from schemas.config import MeasureConfig, TuneConfig
from schemas.target import TargetConfig
from workers.compiling.builder import Builder, ProgramBuilder
from workers.compiling.network import relax_network
from workers.compiling.programs import ScheduleSpace
from workers.compiling.tasks import build_table
from workers.compiling.winograd import ALL_DIRECT, winograd_forms
from workers.measuring.setup import Device, open_device
from workers.protocols import ProgramTable
from workers.pruning.fold import exported_program, fold_batch_norm
from workers.tuning.bundle import Bundle
from workers.tuning.search import target_of
from workers.tuning.searchers import Searchers
from workers.tuning.trials import Trials
from workers.tuning.tuner import Tuner

TARGET = "bench"
_CORES_WAIT_S = 600.0


@dataclass(frozen=True)
class Workbench:
    """What tunes a network that is handed over, on this machine's local device."""

    device: Device
    builder: Builder
    target: Target
    space: ScheduleSpace
    trials: Trials
    tuner: Tuner
    folder: Path
    open_tuning: Callable[[ProgramTable, TuneConfig, Path], tuple[Trials, Tuner]]
    """With a table, how to search, and a folder for what is built."""

    def bundle(self, network: nn.Module, image: Tensor, *, by_tiles: bool = True) -> Bundle:
        """The network imported as a run imports it; ``by_tiles``: convolutions where that pays."""
        program = exported_program(fold_batch_norm(network, image), image)
        forms = winograd_forms(program) if by_tiles else ALL_DIRECT
        relax = relax_network(program, self.target, forms)
        table = build_table(relax, self.target)
        return Bundle(relax, table.network, table.workloads)

    @contextmanager
    def with_table(self, table: ProgramTable, tune: TuneConfig) -> Iterator[Workbench]:
        """The same device and builder, with a tuner that knows what ``table`` holds and no more."""
        with TemporaryDirectory(dir=self.folder) as scratch:
            trials, tuner = self.open_tuning(table, tune, Path(scratch))
            try:
                yield replace(self, trials=trials, tuner=tuner)
            finally:
                trials.close()


@contextmanager
def workbench(
    table: ProgramTable,
    folder: Path,
    tune: TuneConfig,
    measure: MeasureConfig,
    *,
    threads: int = 0,
    seed: int = 0,
    cold: bool = False,
    noting: Callable[[Builder], ProgramBuilder] = lambda builder: builder,
) -> Iterator[Workbench]:
    """Start the device and the warm processes; end them.

    ``cold``: weights out of the caches. ``noting`` may wrap the builder of single programs.
    """
    device = open_device(
        TargetConfig(name=TARGET, threads=threads), measure, folder / "locks", folder
    )
    cores = device.cores
    assert cores is not None  # a local device without a core mask shares the host's
    builder = Builder(device.tvm_target, device.build_processes, cores, folder / "locks")
    target = target_of(device.tvm_target)
    space = ScheduleSpace(target)
    program_builder = noting(builder)

    searchers = Searchers(
        device.tvm_target, device.build_processes, cores, folder / "locks", folder
    )

    def open_tuning(table: ProgramTable, tune: TuneConfig, scratch: Path) -> tuple[Trials, Tuner]:
        trials = Trials(program_builder, device.gauge, space, table, tune, scratch, lambda: cold)
        tuner = Tuner(
            None,  # type: ignore[arg-type]  # every network is handed over imported
            space,
            searchers,
            trials,
            device.gauge,
            table,
            tune,
            seed,
            lambda: cores.working(_CORES_WAIT_S),
        )
        return trials, tuner

    trials, tuner = open_tuning(table, tune, folder)
    try:
        yield Workbench(device, builder, target, space, trials, tuner, folder, open_tuning)
    finally:
        trials.close()
        builder.close()
        searchers.close()
        device.close()
