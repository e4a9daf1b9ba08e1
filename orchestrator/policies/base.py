"""What a policy is: it looks at data, returns decisions, and touches nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.policies.candidates import is_within
from orchestrator.policies.judge import Verdict
from orchestrator.policies.latency_model import Shape, samples_of, samples_of_tasks
from orchestrator.policies.screen import ScreenDecision
from orchestrator.states import Contender, Decision, RankedTask, Search
from schemas.base import Schema
from schemas.config import PruneConfig
from schemas.network import Block, ChannelGroup, Sensitivity, Structure, Trained
from schemas.table import Comparison, KnownTask
from schemas.work import Candidate, Prepared, Screened, ScreeningKind, Tuned

FAR = 0.01
"""Of accuracy: what missed the floor by more is not made up for by training its like."""


@dataclass(frozen=True)
class View:
    """What a policy sees when it proposes."""

    search: Search
    ranking: Sequence[RankedTask]
    programs: Tuned
    prepared: Prepared
    config: PruneConfig
    screened: Sequence[Tuned] = ()
    """Programs of all candidates screened so far, for a policy that learns from them."""
    earlier: Sequence[KnownTask] = ()
    """What tasks of other networks took in earlier runs, for such a policy."""
    sensitivities: Sequence[Sensitivity] = ()
    """Of the current network's groups."""
    lost: Mapping[str, Trained] = field(default_factory=dict)
    """The trained networks of ``search.lost_cuts``, by the key of their training."""

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Of the current network."""
        return self.prepared.groups_in(self.search.current.structure)

    @property
    def widths(self) -> dict[str, int]:
        """Group -> channels that it has in the current network."""
        widths = self.search.current.structure.widths
        return {group.group_id: widths.get(group.group_id, group.channels) for group in self.groups}

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks that the current network has and that may be taken out."""
        if "blocks" in self.config.without:
            return ()
        return self.prepared.blocks_in(self.search.current.structure)

    @property
    def samples(self) -> dict[Shape, float]:
        """What calls of tasks took in this run, in ms."""
        return samples_of([*self.screened, self.programs])

    @property
    def all_samples(self) -> dict[Shape, float]:
        """And in earlier ones; where both know, this one counts."""
        return {**samples_of_tasks(self.earlier), **self.samples}

    @property
    def since_recovery(self) -> tuple[Decision, ...]:
        """Decisions since the network was last trained for long."""
        return self.search.decisions[self.search.recovered_after :]

    @property
    def tried(self) -> set[str]:
        """Candidates that have been decided upon."""
        return {decision.candidate_id for decision in self.search.decisions}

    @property
    def missed(self) -> list[Structure]:
        """What was trained for long and missed the floor by more than ``FAR`` at its best.

        A network that is nowhere wider will not hold it either. Left out are those of which the
        current network shows the contrary.
        """
        best: dict[str, tuple[Structure, float]] = {}
        for item in self.search.decisions:
            if item.lost_accuracy and item.long_training and item.val_accuracy is not None:
                name = item.structure.model_dump_json()
                _, before = best.get(name, (item.structure, -math.inf))
                best[name] = (item.structure, max(before, item.val_accuracy))
        now = self.search.current.structure.widths
        return [
            structure
            for structure, accuracy in best.values()
            if self.search.floor - accuracy > FAR and not is_within(now, [structure])
        ]

    def with_expected_loss(self, candidate: Candidate) -> Candidate:
        """The candidate with the rise that the sensitivities let expect, where they are known."""
        cuts = zip(candidate.groups, candidate.widths_before, candidate.widths_after, strict=True)
        known = self.losses
        if any(group not in known for group in candidate.groups):
            return candidate
        risen = sum(known[group].loss(1.0 - after / before) for group, before, after in cuts)
        return candidate.model_copy(update={"expected_loss": risen})

    @property
    def losses(self) -> dict[str, Sensitivity]:
        """The sensitivities by group."""
        return {item.group_id: item for item in self.sensitivities}


class Proposal(Schema):
    """Candidates, and why what was passed over on the way gave none.

    ``recovery``: there are none before the network has been trained for long.
    """

    candidates: tuple[Candidate, ...]
    passed_over: tuple[str, ...] = ()
    recovery: bool = False


class Policy(Protocol):
    """How a search goes on.

    ``screening``: how candidates' programs are found before any training; None where candidates are
    trained at once and taken when they meet the floor, whatever their latency. ``gates_steps``:
    whether a step has to keep ``prune.step_accuracy_ratio`` besides the floor. ``learns``: whether
    it wants to see the programs of all candidates screened before. ``recovers``: whether the search
    goes on with what the long training at its end regains.
    """

    screening: ScreeningKind | None
    gates_steps: bool
    learns: bool
    recovers: bool

    def propose(self, view: View) -> Proposal:
        """What to try next; no candidates end the search."""
        ...

    def choose(
        self, screened: Sequence[tuple[Candidate, Screened]], config: PruneConfig
    ) -> ScreenDecision:
        """Which of the screened candidates are trained."""
        ...

    def shortlist(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Which of those that kept their accuracy are compared on the device."""
        ...

    def judge(
        self,
        contenders: Sequence[tuple[Contender, Comparison]],
        parent_val_accuracy: float,
        config: PruneConfig,
    ) -> Verdict:
        """Which of the compared candidates is the next step, if any."""
        ...
