"""What policies see of the fake world, and decisions about what they proposed."""

from __future__ import annotations

import fake_world

from orchestrator.policies.base import View
from orchestrator.policies.candidates import rank_tasks
from orchestrator.states import Decision
from schemas.config import PruneConfig
from schemas.network import Block, Sensitivity, Structure
from schemas.work import Candidate, Prepared

UNIT = 4


def sensitivity(group: str, whole: float) -> Sensitivity:
    """A loss that rises in proportion with what is removed, up to ``whole``."""
    parts = Sensitivity.PARTS
    return Sensitivity(group_id=group, losses=tuple(whole * i / parts for i in range(parts + 1)))


def view(
    *decisions: Decision,
    structure: Structure | None = None,
    recovered_after: int = 0,
    losses: dict[str, float] | None = None,
    per_round: int = 3,
    unit: int = UNIT,
    blocks: tuple[Block, ...] = (),
) -> View:
    network = fake_world.network(structure)
    tuned = fake_world.tuned(network.structure, "host", unit=unit)
    costs = dict.fromkeys(fake_world.LAYERS, 1.0) if losses is None else losses
    return View(
        search=fake_world.search(network, decisions=decisions, recovered_after=recovered_after),
        ranking=rank_tasks(tuned),
        programs=tuned,
        prepared=Prepared(dense=fake_world.network(), groups=fake_world.groups(), blocks=blocks),
        config=PruneConfig(
            max_accuracy_drop=0.05, step_accuracy_ratio=0.9, fine_tuned_per_round=per_round
        ),
        sensitivities=[sensitivity(group, whole) for group, whole in costs.items()],
        lost={"trained": fake_world.network(accuracy=0.5)},
    )


def kept(candidate: Candidate, structure: Structure | None = None) -> float:
    """The share of the latency that is left."""
    before = fake_world.tuned(structure or Structure(), "host").sum_ms
    return fake_world.tuned(candidate.structure, "host").sum_ms / before


def lost(candidate: Candidate) -> Decision:
    return Decision(
        round=1,
        candidate_id=candidate.candidate_id,
        task_id=candidate.task_id,
        task_name=candidate.task_name,
        groups=candidate.groups,
        structure=candidate.structure,
        screen_key="screened",
        fine_tune_key="trained",
        long_training=candidate.long_training,
        kept_share=candidate.kept_share,
        accepted=False,
        reason="below the floor",
    )
