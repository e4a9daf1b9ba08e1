"""The order and rules of CPrune (ECCV 2022, algorithm 1), with its arithmetic done right.

The slowest task first, one step at a time, the latency gate before the accuracy gate. Widths are
whole numbers that keep the structure of every program of the group, where the original code adds
up fractions and looks at the pruned layer alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.candidates import candidate_of, groups_behind, open_groups
from orchestrator.policies.judge import Verdict
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.screen import ScreenDecision, choose
from orchestrator.states import Contender, Decision
from orchestrator.widths import joint_widths
from schemas.config import PruneConfig
from schemas.table import Comparison
from schemas.work import Candidate, Screened, ScreeningKind


class Paper(Parallel):
    """One candidate at a time.

    A task whose candidate was not faster is passed over until a step is accepted, and then cut one
    step deeper; one whose candidate lost its accuracy is never tried again. When every task has
    been passed over, the search ends.
    """

    recovers = False
    learns = False

    def propose(self, view: View) -> Proposal:
        """The next step of the slowest task that is not passed over."""
        lost = {
            group
            for decision in view.search.decisions
            if decision.lost_accuracy
            for group in decision.groups
        }
        passed_over: list[str] = []
        for task in view.ranking:
            if task.task_id in view.search.set_aside:
                passed_over.append(f"{task.name}: set aside")
                continue
            groups = view.prepared.groups
            behind = groups_behind(task.task_id, view.programs, groups, view.config)
            if not behind:
                continue
            if lost.intersection(group.group_id for group in behind):
                passed_over.append(f"{task.name}: pruning it lost too much accuracy before")
                continue
            found, refusals = open_groups(
                behind, view.search.current.structure, view.programs, view.config
            )
            if not found:
                passed_over.append(f"{task.name}: {'; '.join(refusals)}")
                continue
            names = [group.group_id for group in found]
            cuts = joint_widths(found)
            depth = _not_faster(view.search.decisions, set(names))
            if depth >= len(cuts):
                passed_over.append(f"{task.name}: no width of it was faster")
                continue
            cut = dict(zip(names, cuts[depth], strict=True))
            made = candidate_of(task.task_id, task.name, view.search.current, groups, cut)
            return Proposal(candidates=(made,), passed_over=tuple(passed_over))
        return Proposal(candidates=(), passed_over=tuple(passed_over))

    def choose(
        self, screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig
    ) -> ScreenDecision:
        """The one candidate, if it is faster."""
        return choose(screened, config.model_copy(update={"fine_tuned_per_round": 1}))


class Original(Paper):
    """The same with the original's tuning, every task again for every candidate, and with its
    latency gate, which asks for no confidence."""

    screening: ScreeningKind | None = "search_all"

    def judge(
        self,
        contenders: Sequence[tuple[Contender, Comparison]],
        parent_val_accuracy: float,
        config: PruneConfig,
    ) -> Verdict:
        """By the mean of what was measured."""
        return super().judge(
            contenders, parent_val_accuracy, config.model_copy(update={"confidence": 0.5})
        )


def _not_faster(decisions: Sequence[Decision], groups: set[str]) -> int:
    """How often in a row, up to now, cutting these groups was not faster."""
    depth = 0
    for decision in decisions:
        if groups.intersection(decision.groups):
            depth = 0 if decision.accepted else depth + 1
    return depth
