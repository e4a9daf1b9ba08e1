"""The last measurement of a comparison: which libraries are compared, and what a failure costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import fake_world
import pytest
from compare_world import World, base, quiet

from device_agents.session import NoDevice
from orchestrator.compare import comparison
from orchestrator.compare.comparison import ComparisonStopped, compare
from orchestrator.compare.finals import Finals, compare_all, measure_finals
from orchestrator.compare.methods import OURS
from orchestrator.summary import exported_of
from schemas.config import MeasureConfig
from schemas.record import RunRecord
from schemas.table import Comparison
from schemas.target import TargetConfig
from schemas.work import Exported
from workers.measuring.gauge import Gauge, ProgramFailed
from workers.measuring.occasions import OCCASIONS

SHAPE = (1, 3, 8, 8)


class Device:
    """A device on which the libraries named ``broken`` do not run; ``asked`` tells the pairs."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken = broken
        self.asked: list[tuple[str, str]] = []

    def compare(self, key: str, reference: Path, candidate: Path, shape: object) -> Comparison:
        self.asked.append((reference.name, candidate.name))
        if candidate.name in self.broken:
            raise ProgramFailed("undefined symbol")
        return pair()


def pair() -> Comparison:
    return Comparison(
        reference_ms=(2.0,) * 6,
        candidate_ms=(1.0,) * 6,
        reference=fake_world.measurement(2.0),
        candidate=fake_world.measurement(1.0),
    )


def measured(device: Device, *methods: str) -> Finals:
    libraries = {method: Path(method) for method in ("dense", *methods)}
    return compare_all(cast(Gauge, device), "key", libraries, SHAPE, lambda line: None)


def test_each_is_compared_with_the_dense_network_and_with_ours_in_turns() -> None:
    device = Device()
    found = measured(device, "ours", "fpgm")
    turn = [("dense", "ours"), ("dense", "fpgm"), ("ours", "fpgm")]
    assert device.asked == turn * OCCASIONS
    assert {method: len(pairs) for method, pairs in found.beside_dense.items()} == {
        "ours": OCCASIONS,
        "fpgm": OCCASIONS,
    }
    assert list(found.beside_ours) == ["fpgm"] and found.failed == {}


def test_a_library_that_fails_loses_its_own_row_alone() -> None:
    device = Device(broken=["fpgm"])
    found = measured(device, "ours", "fpgm", "uniform-l1")
    assert found.failed == {"fpgm": "its final library failed on the device: undefined symbol"}
    assert list(found.beside_dense) == ["ours", "uniform-l1"]
    assert list(found.beside_ours) == ["uniform-l1"]
    assert device.asked.count(("dense", "fpgm")) == 1, "it is not asked again"


def test_where_ours_fails_there_is_nothing_to_compare() -> None:
    with pytest.raises(ProgramFailed, match="undefined symbol"):
        measured(Device(broken=["ours"]), "fpgm", "ours")


def test_what_was_measured_is_kept_unless_a_library_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("dense", "ours", "fpgm"):
        (tmp_path / method).write_text(method)
    libraries = {method: tmp_path / method for method in ("dense", "ours", "fpgm")}
    device = Device(broken=["fpgm"])

    class Opened:
        gauge = device

        def close(self) -> None:
            pass

    def go(kept: Finals | None) -> Finals:
        target = TargetConfig(name="host")
        return measure_finals(
            libraries, SHAPE, target, MeasureConfig(), kept, report=lambda line: None
        )

    monkeypatch.setattr("workers.measuring.setup.open_device", lambda *_: Opened())
    failed = go(None)
    assert failed.failed
    device.broken = ()
    whole = go(failed)
    assert not whole.failed and list(whole.beside_ours) == ["fpgm"]
    device.asked.clear()
    assert go(whole) is whole and device.asked == []


def test_a_device_that_is_gone_at_the_end_stops_it_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, tmp_path)

    def gone(*_: object) -> None:
        raise NoDevice("no device of key local is free")

    monkeypatch.setattr(comparison, "measure_finals", gone)
    monkeypatch.setattr(comparison, "exported_of", with_library)
    config = base(targets=[{"name": "host"}])
    with pytest.raises(ComparisonStopped, match="could not be measured on host: no device of"):
        compare(config, world.folder, (OURS,), is_quick=False, original_candidates=3, report=quiet)


def test_a_final_library_that_fails_leaves_the_others_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, tmp_path)
    finals = Finals(
        key="", beside_dense={OURS: (pair(),)}, beside_ours={}, failed={"fpgm": "broken"}
    )
    monkeypatch.setattr(comparison, "measure_finals", lambda *_: finals)
    monkeypatch.setattr(comparison, "exported_of", with_library)
    config = base(targets=[{"name": "host"}])
    (table,) = compare(
        config, world.folder, (OURS, "fpgm"), is_quick=False, original_candidates=3, report=quiet
    )
    assert [row.method for row in table.rows] == ["dense", OURS]
    assert table.not_run == {"fpgm": "broken"}


def with_library(record: RunRecord, target: str) -> Exported | None:
    exported = exported_of(record, target)
    artifacts = {"library": "export/model.so"}
    return exported and exported.model_copy(update={"artifacts": artifacts})
