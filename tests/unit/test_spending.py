"""What a search has spent."""

from __future__ import annotations

import fake_world

from orchestrator.spending import with_screenings
from schemas.network import Structure
from schemas.work import Screened


def screened(name: str, programs: int) -> Screened:
    tuned = fake_world.tuned(Structure(), "host")
    tuned = tuned.model_copy(update={"measured_programs": programs, "device_s": 1.5})
    return Screened(candidate_id=name, tuned=tuned, parent_ms=1.0, candidate_ms=0.5)


def test_a_candidate_that_waits_and_comes_again_costs_nothing_then() -> None:
    found = fake_world.search(fake_world.network())
    first, second = screened("first", 3), screened("second", 4)
    refused = Screened(
        candidate_id="none", tuned=None, refused="no", parent_ms=1.0, candidate_ms=1.0
    )
    once = with_screenings(found, [first, refused])
    assert (once.measured_programs, once.device_s) == (3, 1.5)
    twice = with_screenings(once, [first, refused, second])
    assert (twice.measured_programs, twice.device_s) == (7, 3.0)
