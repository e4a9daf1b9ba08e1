"""NetAdapt (Yang et al., ECCV 2018) as a policy for comparison: steps of a fixed size, each layer's
candidate measured on the device, the most accurate one taken."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.candidates import candidate_of, least_of
from orchestrator.policies.judge import Verdict
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.screen import ScreenDecision, choose
from orchestrator.states import Contender
from schemas.config import PruneConfig
from schemas.table import Comparison
from schemas.work import Candidate, Screened, ScreeningKind

PARTS = 8
"""A step takes this part of a group's dense width."""


class NetAdapt(Parallel):
    """One candidate for each channel group, all of them trained, the most accurate one taken.

    Instead of a look-up table of latencies the changed tasks of each candidate are tuned and
    measured, as all methods here are held to what the device says.
    """

    screening: ScreeningKind | None = "search"
    learns = False
    gates_steps = False

    def propose(self, view: View) -> Proposal:
        """Every group by itself, an eighth of its dense width narrower."""
        groups, current = view.prepared.groups, view.search.current
        candidates, passed_over = [], []
        for group in groups:
            if not group.prunable:
                continue
            width = current.structure.widths.get(group.group_id, group.channels)
            narrower = width - group.share(1 / PARTS)
            if narrower < least_of(group, view.config):
                passed_over.append(f"{group.group_id}: as narrow as it may be")
                continue
            name = group.group_id
            cut = {name: narrower}
            candidates.append(candidate_of(name, name, current, groups, cut))
        new = [item for item in candidates if item.candidate_id not in view.tried]
        return Proposal(candidates=tuple(new), passed_over=tuple(passed_over))

    def choose(
        self, screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig
    ) -> ScreenDecision:
        """All that are faster."""
        most = max(1, len(screened))
        return choose(screened, config.model_copy(update={"fine_tuned_per_round": most}))

    def shortlist(self, contenders: Sequence[Contender]) -> list[Contender]:
        """The most accurate one."""
        return sorted(
            contenders, key=lambda item: (-item.network.val_accuracy, item.candidate.candidate_id)
        )[:1]

    def judge(
        self,
        contenders: Sequence[tuple[Contender, Comparison]],
        parent_val_accuracy: float,
        config: PruneConfig,
    ) -> Verdict:
        """That one: its programs were measured to be faster before it was trained."""
        name = contenders[0][0].candidate.candidate_id
        accuracy = contenders[0][0].network.val_accuracy
        reason = f"accepted: the most accurate of its round, validation accuracy {accuracy:.4f}"
        return Verdict(accepted=name, reasons={name: reason})
