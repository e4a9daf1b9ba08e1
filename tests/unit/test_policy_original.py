"""The original's policy, where it is not the paper's as it is done here."""

from __future__ import annotations

import fake_world
import pytest

from orchestrator.policies.candidates import candidate_of
from orchestrator.policies.paper import Original, Paper
from orchestrator.states import Contender
from schemas.table import Comparison


@pytest.mark.parametrize(("policy", "accepted"), [(Paper, False), (Original, True)])
def test_the_originals_gate_asks_for_no_confidence(policy: type[Paper], accepted: bool) -> None:
    """Three occasions with 0.95, 0.97 and 1.0 of the latency: 0.973 in the mean."""
    parent = fake_world.network()
    candidate = candidate_of("", "", parent, fake_world.groups(), {"deep": 16})
    timed = Comparison(
        reference_ms=(1.0,) * 3,
        candidate_ms=(0.95, 0.97, 1.0),
        reference=fake_world.measurement(1.0),
        candidate=fake_world.measurement(0.97),
        occasions=(1, 1, 1),
    )
    contender = Contender(candidate=candidate, network=parent)
    prune = fake_world.config(prune={"max_accuracy_drop": 0.03, "step_latency_ratio": 0.99}).prune
    verdict = policy().judge([(contender, timed)], parent.val_accuracy, prune)
    assert (verdict.accepted == candidate.candidate_id) == accepted
