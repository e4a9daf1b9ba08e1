"""The default policy: candidates of several tasks and widths side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
        found = self.every(view, view.config)
        candidates = tuple(view.with_expected_loss(candidate) for candidate in found.candidates)
        return found.model_copy(update={"candidates": candidates})

    def every(self, view: View, config: PruneConfig) -> Proposal:
        """Those cuts, each once: as a cut of the whole network where it is one for a task, too.

        A cut that was lost narrowly stands in for all cuts of the whole network. Single tasks are
        cut as ``config`` says; beside others only where more than one is trained in a round.
        """
        further = trained_further(view, config.step_accuracy_ratio)
        whole = whole_cuts(view)
        if not further and not whole and needs_recovery(view):
            return Proposal(candidates=(), recovery=True)
        first = [further] if further else whole
        if first and config.fine_tuned_per_round == 1:
            return Proposal(candidates=tuple(first))
        alone = self.alone(view, config, at_the_floor=not whole and bool(view.sensitivities))
        known = [candidate.structure for candidate in first]
        others = (item for item in alone.candidates if item.structure not in known)
        return alone.model_copy(update={"candidates": (*first, *others)})

    def alone(self, view: View, config: PruneConfig, *, at_the_floor: bool) -> Proposal:
        """Cuts for single tasks.

        ``at_the_floor``: where the whole network cannot be cut any more, the accuracy is used up.
        Those are cut as well that a short training had set aside, and when no other is left, the
        depths of all that were not tried yet.
        """

        def beside(set_aside: Collection[str]) -> Proposal:
            return propose(
                view.ranking,
                view.programs,
                view.groups,
                view.search.current,
                set_aside,
                view.tried,
                config,
                blocks=view.blocks,
                missed=view.missed,
                at_the_floor=at_the_floor,
            )

        if not at_the_floor:
            return beside(view.search.set_aside)
        found = beside(_set_aside_for_good(view))
        return found if found.candidates else beside(())

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


def _set_aside_for_good(view: View) -> set[str]:
    """The tasks set aside for something else than the accuracy after a short training."""
    since = view.search.since_accepted
    long = {decision.task_id for decision in since if decision.long_training}
    short = {
        decision.task_id
        for decision in since
        if decision.lost_accuracy and not decision.long_training
    }
    return set(view.search.set_aside) - (short - long)
