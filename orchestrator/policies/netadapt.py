"""NetAdapt (Yang et al., ECCV 2018) as a policy for comparison: steps of a fixed size, each layer
cut as far as the step asks for, the most accurate candidate taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.candidates import candidate_of, least_of
from orchestrator.policies.judge import Verdict
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.screen import ScreenDecision, choose
from orchestrator.policies.sites import Sites
from orchestrator.states import Contender, Decision
from orchestrator.widths import multiples_between
from schemas.config import PruneConfig
from schemas.table import Comparison
from schemas.work import Candidate, Screened, ScreeningKind

STEP = 0.03
"""Of the current latency: what every candidate has to save. A group whose calls take 6 % of it is
about halved. The authors' code begins with 2.5 %."""
MULTIPLE = 8
"""Widths are multiples of it where a group has such, as in the authors' code: processors compute
that many channels at once."""
_DEEPER = 1.5
"""Times the predicted saving of a cut that saved too little: what the group's next one is to save.
"""


class NetAdapt(Parallel):
    """One candidate for each channel group, all of them trained, the most accurate one taken.

    Where NetAdapt looks latencies up in a table, widths are chosen by a fit to what the run has
    measured, and the changed tasks of each candidate are tuned and measured, as all methods here
    are held to what the device says.
    """

    screening: ScreeningKind | None = "search"
    gates_steps = False

    def propose(self, view: View) -> Proposal:
        """Every group by itself, at the widest width that is predicted to save the step.

        A group whose last cut was measured to save less is cut deeper; one that has no such width
        is left out.
        """
        groups, current, widths = view.groups, view.search.current, view.widths
        sites = Sites(view.programs, groups, widths, CallCosts(view.samples))
        candidates, passed_over = [], []
        for group in groups:
            if not group.prunable:
                continue
            name, now = group.group_id, widths[group.group_id]
            too_wide = _too_wide(view.search.decisions, name)
            wanted_ms = STEP * view.programs.sum_ms
            if too_wide is not None:
                wanted_ms = max(wanted_ms, _DEEPER * _saved_ms(sites, name, too_wide / now))
            least, unit = least_of(group, view.config), math.lcm(group.divisor, MULTIPLE)
            narrower = multiples_between(unit, least, now)
            narrower = narrower or multiples_between(group.divisor, least, now)
            width = next((w for w in narrower if _saved_ms(sites, name, w / now) >= wanted_ms), 0)
            if not width:
                passed_over.append(f"{name}: no width is expected to save {wanted_ms:.4g} ms")
                continue
            candidate = candidate_of(name, name, current, groups, {name: width})
            if candidate.candidate_id in view.tried:
                passed_over.append(f"{name}: {width} channels have been tried")
                continue
            candidates.append(candidate)
        return Proposal(candidates=tuple(candidates), passed_over=tuple(passed_over))

    def choose(
        self, screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig
    ) -> ScreenDecision:
        """All that save the step."""
        most = {"fine_tuned_per_round": max(1, len(screened)), "step_latency_ratio": 1.0 - STEP}
        return choose(screened, config.model_copy(update=most))

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
        """That one: its programs were measured to save the step before it was trained."""
        name = contenders[0][0].candidate.candidate_id
        accuracy = contenders[0][0].network.val_accuracy
        reason = f"accepted: the most accurate of its round, validation accuracy {accuracy:.4f}"
        return Verdict(accepted=name, reasons={name: reason})


def _too_wide(decisions: Sequence[Decision], group: str) -> int | None:
    """The width at which the group last saved too little since a step cut it; None if it never
    did."""
    width = None
    for decision in decisions:
        if decision.groups == (group,) and (decision.accepted or decision.not_faster):
            width = None if decision.accepted else decision.structure.widths[group]
    return width


def _saved_ms(sites: Sites, group: str, share: float) -> float:
    """What the group's calls are predicted to take less with this share of its channels."""
    return sites.of_ms([group], {}) - sites.of_ms([group], {group: share})
