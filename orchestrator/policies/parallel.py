"""The default policy: candidates of several tasks and widths side by side."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.further import trained_further
from orchestrator.policies.judge import Verdict, judge
from orchestrator.policies.propose import propose
from orchestrator.policies.screen import ScreenDecision, choose
from orchestrator.policies.whole import needs_recovery, whole_cuts
from orchestrator.states import Contender
from schemas.config import PruneConfig
from schemas.table import Comparison
from schemas.work import Candidate, Screened, ScreeningKind


class Parallel:
    """Cuts of several tasks and of the whole network side by side, the best few trained at once.

    The step taken is the one that gains most latency for the accuracy it costs.
    """

    screening: ScreeningKind | None = "transplant"
    gates_steps = True
    learns = True
    recovers = True

    def propose(self, view: View) -> Proposal:
        """Cuts of the whole network, and of the slowest tasks that are not set aside.

        Where steps were taken and the accuracy allows no further cut of the whole network, it is
        trained for long first: what that regains is spent on the whole network again.
        """
        whole = self.whole(view)
        if not whole and needs_recovery(view):
            return Proposal(candidates=(), recovery=True)
        alone = self.alone(view, whole, view.config)
        candidates = (*whole, *alone.candidates)
        return Proposal(
            candidates=tuple(view.with_expected_loss(candidate) for candidate in candidates),
            passed_over=alone.passed_over,
        )

    def whole(self, view: View) -> list[Candidate]:
        """Cuts of the whole network; alone the one that was lost narrowly, where there is one."""
        further = trained_further(view, view.config.step_accuracy_ratio)
        return [further] if further else whole_cuts(view)

    def alone(self, view: View, whole: Sequence[Candidate], config: PruneConfig) -> Proposal:
        """Cuts for single tasks, as ``config`` says; none beside the ``whole`` ones where only one
        candidate is trained in a round.

        Where the whole network cannot be cut any more the accuracy is used up: they are trained for
        long, and groups behind one task are cut apart, too.
        """
        if whole and config.fine_tuned_per_round == 1:
            return Proposal(candidates=())
        at_the_floor = not whole and bool(view.sensitivities)
        found = propose(
            view.ranking,
            view.programs,
            view.prepared.groups,
            view.search.current,
            view.search.set_aside,
            view.tried,
            config,
            apart=at_the_floor,
        )
        if not at_the_floor:
            return found
        longer = [item.model_copy(update={"long_training": True}) for item in found.candidates]
        return found.model_copy(update={"candidates": tuple(longer)})

    def choose(
        self, screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig
    ) -> ScreenDecision:
        """The deepest cut of the whole network, then those with most gain for the loss expected."""
        return choose(screened, config)

    def shortlist(self, contenders: Sequence[Contender]) -> list[Contender]:
        """All of them."""
        return list(contenders)

    def judge(
        self,
        contenders: Sequence[tuple[Contender, Comparison]],
        parent_val_accuracy: float,
        config: PruneConfig,
    ) -> Verdict:
        """The most latency gained for the accuracy lost."""
        return judge(contenders, parent_val_accuracy, config)
