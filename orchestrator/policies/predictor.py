"""Many widths ranked by a latency model, so that few are measured.

The idea of RB-CPrune (IEEE TMC 2025): an estimator of latencies stands in for tuning. Here it only
chooses what is screened; nothing is accepted without measurements.
"""

from __future__ import annotations

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.latency_model import LatencyModel, predicted_ms
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.screen import most_kept
from schemas.work import Candidate

DEPTHS = 8
"""Widths of each task that are looked at."""


class Predictor(Parallel):
    """As ``Parallel``, with candidates of all tasks at more depths, of which the model's best are
    screened.

    For each task, and for the whole network, those with the largest predicted gain for the share of
    channels taken: half as many as ``Parallel`` screens, and at least one. Where the model expects
    too little of all, the best cut of the whole network: whether that pays is measured.
    """

    def propose(self, view: View) -> Proposal:
        """The candidates with the largest predicted gains."""
        prune = view.config
        groups = view.groups
        every = {
            "tasks_per_round": max(1, len(view.ranking)),
            "widths_per_task": max(DEPTHS, prune.widths_per_task),
        }
        found = self.every(view, prune.model_copy(update=every))
        if found.recovery:
            return found
        candidates = found.candidates
        model = LatencyModel(view.all_samples)
        widths = view.widths
        ranked = []
        poor: list[tuple[float, Candidate]] = []
        for candidate in candidates:
            cut = dict(zip(candidate.groups, candidate.widths_after, strict=True))
            told_ms = predicted_ms(model, view.programs, groups, widths, cut, view.blocks)
            gain = 1.0 - told_ms / view.programs.sum_ms if view.programs.sum_ms else 0.0
            known = view.with_expected_loss(candidate).model_copy(update={"predicted_ms": told_ms})
            if gain < 1.0 - most_kept(candidate, prune) and candidate.trained_from is None:
                poor += [] if candidate.task_id else [(gain, known)]
                continue
            taken = sum(1.0 - width / widths[group] for group, width in cut.items())
            ranked.append((gain / max(taken, 1e-9), known))
        ranked.sort(key=lambda item: (-item[0], item[1].candidate_id))
        tasks = list(dict.fromkeys(item.task_id for _, item in ranked if item.task_id))
        chosen = []
        for task_id in ("", *tasks[: prune.tasks_per_round]):
            own = [candidate for _, candidate in ranked if candidate.task_id == task_id]
            chosen += own[: max(1, prune.widths_per_task // 2)]
        passed_over = found.passed_over
        if poor and not chosen:
            chosen = [max(poor, key=lambda item: (item[0], item[1].candidate_id))[1]]
        elif candidates and not chosen:
            told = f"the latency model expects too little of {len(candidates)} candidates"
            passed_over = (*passed_over, told)
        return Proposal(candidates=tuple(chosen), passed_over=passed_over)
