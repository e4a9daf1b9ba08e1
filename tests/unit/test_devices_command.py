"""``cprune devices``: what the trackers of a configuration's targets tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agents.tracker_wire import (
    DeviceEntry,
    QueueEntry,
    TrackerSummary,
    TrackerUnreachable,
)
from orchestrator import cli
from orchestrator.devices import look
from schemas.target import TargetConfig

SUMMARY = TrackerSummary(
    devices=(
        DeviceEntry("pixel", "10.0.0.7", 9091),
        DeviceEntry("pixel", "10.0.0.5", 9090),
        DeviceEntry("board", "10.0.0.9", 9090),
    ),
    queues={"pixel": QueueEntry(free=1, pending=2)},
)


def tracker(key: str) -> TargetConfig:
    return TargetConfig(name=key, device="tracker", key=key, tracker_port=9190)


def test_each_target_has_its_devices_counted() -> None:
    found = look([TargetConfig(), tracker("pixel")], lambda host, port: SUMMARY)
    assert found.rows == (
        ("host", "", "", "", "", "this machine, all cores"),
        ("pixel", "pixel", "2", "1", "2", "10.0.0.5:9090, 10.0.0.7:9091"),
    )
    assert found.problems == ()


def test_a_target_without_a_device_says_what_there_is() -> None:
    found = look([tracker("phone")], lambda host, port: SUMMARY)
    assert found.rows == (("phone", "phone", "0", "0", "0", ""),)
    assert found.problems == (
        "target phone: the tracker at 127.0.0.1:9190 has no device of the key 'phone'; "
        "there are: board, pixel",
    )


def test_a_tracker_that_does_not_answer_hides_no_other_target() -> None:
    def gone(host: str, port: int) -> TrackerSummary:
        raise TrackerUnreachable("no tracker at 127.0.0.1:9190: refused")

    found = look([tracker("pixel"), TargetConfig(threads=2)], gone)
    assert [row[2:] for row in found.rows] == [
        ("?", "?", "?", "127.0.0.1:9190"),
        ("", "", "", "this machine, 2 threads"),
    ]
    assert found.problems == ("target pixel: no tracker at 127.0.0.1:9190: refused",)


def test_the_command_leaves_with_1_where_a_target_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    target = "{name: phone, device: tracker, key: pixel, tracker_port: 1}"
    config.write_text(f"run: sweep\nprune: {{max_accuracy_drop: 0.01}}\ntargets: [{target}]\n")
    with pytest.raises(SystemExit) as left:
        cli.main(["devices", str(config)])
    told = capsys.readouterr()
    assert left.value.code == 1
    assert "phone" in told.out and "127.0.0.1:1" in told.out
    assert told.err.startswith("cprune: target phone: no tracker at 127.0.0.1:1")
