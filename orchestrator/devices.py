"""The devices that a configuration's targets have, as their trackers tell; none is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_agents.tracker_wire import TrackerSummary, TrackerUnreachable, tracker_summary
from orchestrator.wording import count
from schemas.target import TargetConfig

HEADINGS = ["target", "key", "devices", "free", "waiting", "where"]

Ask = Callable[[str, int], TrackerSummary]


@dataclass(frozen=True)
class Devices:
    """A row of ``HEADINGS`` for each target, and why a target has no device, where it has none."""

    rows: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...] = ()


def look(targets: Sequence[TargetConfig], ask: Ask = tracker_summary) -> Devices:
    """Ask each target's tracker. It knows how many devices of a key are free, not which of them;
    ``waiting`` are clients that have asked for one."""
    rows, problems = [], []
    for target in targets:
        if target.device == "local":
            threads = count(target.threads, "thread") if target.threads else "all cores"
            rows.append((target.name, "", "", "", "", f"this machine, {threads}"))
            continue
        if target.device == "replay":
            rows.append((target.name, "", "", "", "", f"the recording {target.recording}"))
            continue
        host, port = target.tracker_host, target.tracker_port or 0
        try:
            summary = ask(host, port)
        except TrackerUnreachable as error:
            rows.append((target.name, target.key, "?", "?", "?", f"{host}:{port}"))
            problems.append(f"target {target.name}: {error}")
            continue
        places = sorted(f"{d.host}:{d.port}" for d in summary.devices if d.key == target.key)
        queue = summary.queues.get(target.key)
        rows.append(
            (
                target.name,
                target.key,
                str(len(places)),
                str(queue.free if queue else 0),
                str(queue.pending if queue else 0),
                ", ".join(places),
            )
        )
        if not places:
            problems.append(f"target {target.name}: {none_of(target, summary)}")
    return Devices(tuple(rows), tuple(problems))


def none_of(target: TargetConfig, summary: TrackerSummary) -> str:
    """That the target's tracker has no device of its key, and which keys it has."""
    there = ", ".join(summary.keys()) or "no devices at all"
    return (
        f"the tracker at {target.tracker_host}:{target.tracker_port} has no device of the key "
        f"{target.key!r}; there are: {there}"
    )
