"""What the table's clients make of errors on the way; no actor is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from orchestrator.ray_workers import sort_failure
from orchestrator.store.base import LedgerDamaged, LedgerError, LedgerFull, StaleSequence
from orchestrator.table_actor import LedgerClient, RayDied
from orchestrator.transition import IllegalTransition


class Actor:
    """Takes every call."""

    call: Any

    def __init__(self) -> None:
        self.call = self

    def remote(self, *values: object) -> object:
        return values


def client(monkeypatch: pytest.MonkeyPatch, error: Exception) -> LedgerClient:
    """A client whose every question is answered by this error."""

    def get(ref: object, timeout: float) -> object:
        raise error

    monkeypatch.setattr(ray, "get", get)
    return LedgerClient(Actor())


def in_actor(cause: Exception) -> Exception:
    """How Ray hands on what a method of an actor raised."""
    error: Exception = ray.exceptions.RayTaskError("call", "Traceback ...\n" * 20, cause)
    return error


@pytest.mark.parametrize("kind", [LedgerFull, LedgerDamaged, StaleSequence, IllegalTransition])
def test_the_ledgers_own_errors_arrive_as_they_were_raised(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        client(monkeypatch, in_actor(kind("one sentence"))).info()
    assert type(caught.value) is kind and str(caught.value) == "one sentence"
    assert caught.value.__suppress_context__


def test_an_unexpected_error_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ray.exceptions.RayTaskError):
        client(monkeypatch, in_actor(KeyError("x"))).info()


@pytest.mark.parametrize(
    "error", [ray.exceptions.ActorDiedError(), ray.exceptions.RaySystemError("no raylet")]
)
def test_the_death_of_ray_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(RayDied, match=r"Ray has died.*same command again") as caught:
        client(monkeypatch, error).keep_time(1.0)
    assert "\n" not in str(caught.value)


def test_a_full_disk_met_by_a_worker_is_the_systems_failure_in_one_sentence() -> None:
    failure = sort_failure(in_actor(LedgerFull("the disk is full")))
    assert (failure.kind, failure.message) == ("system_error", "the disk is full")


def test_a_silent_table_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError, match="did not answer events within 120 s"):
        client(monkeypatch, ray.exceptions.GetTimeoutError()).events()
