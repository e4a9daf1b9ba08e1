"""Which of a cluster's machines build, as far as that is decided without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workers import ray_builders
from workers.ray_builders import RayBuilders


class Cluster:
    """This machine and one other; ``starts``: what each start of a builder there comes to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *starts: Any) -> None:
        self.left = list(starts)
        nodes = [
            {"NodeID": name, "Alive": True, "Resources": {"CPU": 4}} for name in ("here", "there")
        ]
        here = SimpleNamespace(get_node_id=lambda: "here")
        monkeypatch.setattr(ray_builders.ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray_builders.ray, "get_runtime_context", lambda: here)
        monkeypatch.setattr(
            RayBuilders, "_started", lambda _, node, cpus: self._started(node, cpus)
        )

    def _started(self, node: str, cpus: int) -> Any:
        found = self.left.pop(0)
        if found == "slow":
            self.builders._failed_starts[node] += 1
            return None
        return found

    def builders_found(self, times: int) -> list[int]:
        self.builders = RayBuilders({})
        return [len(self.builders()) for _ in range(times)]


BUILDER = SimpleNamespace(is_lost=False)


def test_a_machine_that_was_slow_to_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cluster(monkeypatch, "slow", BUILDER).builders_found(3) == [0, 1, 1]


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, "slow", "slow", "slow")
    assert cluster.builders_found(6) == [0] * 6 and cluster.left == []


def test_one_of_another_architecture_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, None)
    assert cluster.builders_found(3) == [0] * 3 and cluster.left == []
