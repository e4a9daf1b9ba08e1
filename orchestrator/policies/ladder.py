"""Policies for comparison that know one ratio for the whole network: uniform and global pruning.

Candidates are rungs of a ladder of ever narrower structures. The search climbs down it while the
floor is met, the steps halved when it is not. A rung that misses it narrowly is trained further, as
our cuts are; between two attempts at the last step the network that was reached is. Latency is not
looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.policies.base import Proposal, View
from orchestrator.policies.candidates import allowed_width, candidate_of
from orchestrator.policies.further import trained_further
from orchestrator.policies.parallel import Parallel
from orchestrator.states import Decision
from schemas.network import Structure
from schemas.work import ScreeningKind

HAD_ENOUGH = "it has had as much training as was asked for"
"""Why a climb ends that might have gone on: a limit, not its own end."""
SHARES = tuple(share / 40 for share in range(39, 0, -1))
"""Of every width, or of all channels: what is kept on each rung."""


@dataclass(frozen=True)
class Move:
    """The next candidate: a rung; ``recovers`` where it is the one that has been reached."""

    rung: int
    recovers: bool


@dataclass(frozen=True)
class Attempt:
    """A candidate that was trained: whether it met the floor, and whether it was a recovery."""

    met: bool
    recovers: bool = False


class Ladder(Parallel):
    """Climbs down a ladder of structures."""

    screening: ScreeningKind | None = None
    gates_steps = False
    learns = False

    def rungs(self, view: View) -> list[tuple[str, Structure]]:
        """The structures, from the widest to the narrowest, with their names."""
        raise NotImplementedError

    def propose(self, view: View) -> Proposal:
        """The next rung, from the network that has been reached."""
        further = trained_further(view, 0.0)
        if further:
            return Proposal(candidates=(further,))
        rungs, found = self.rungs(view), view.search
        had_enough = (
            len(found.decisions) >= view.config.least_candidates
            and found.train_s >= view.config.least_train_s
        )
        climbed = (
            len(rungs),
            attempts_of(found.decisions),
            len(attempts_of(found.decisions[: found.recovered_after])),
        )
        move = next_move(*climbed, had_enough=had_enough)
        if move is None:
            if not rungs:
                why = "no group can be narrower"
            elif found.current.structure == rungs[-1][1]:
                why = "the ladder has no narrower one"
            else:
                why = why_ended(*climbed)
            return Proposal(candidates=(), passed_over=(why,))
        name, structure = rungs[move.rung]
        name = f"{name}, trained further" if move.recovers else name
        current = view.search.current
        made = candidate_of(
            "", name, current, view.prepared.groups, structure.widths, long_training=True
        )
        return Proposal(candidates=(made,))


class Uniform(Ladder):
    """The same share of every width (the uniform baseline of Li et al., ICLR 2017)."""

    def rungs(self, view: View) -> list[tuple[str, Structure]]:
        """From 97.5 % of every width in steps of 2.5 %."""
        groups = [group for group in view.prepared.groups if group.prunable]
        return _allowed(
            view,
            [
                (f"{share:.1%} of every width", {g.group_id: g.share(share) for g in groups})
                for share in SHARES
            ],
        )


class Global(Ladder):
    """One threshold over the whole network's channel importances (Fang et al., DepGraph)."""

    def rungs(self, view: View) -> list[tuple[str, Structure]]:
        """The structures that the preparation found."""
        ladder = view.prepared.ladder
        return _allowed(
            view,
            [
                (f"global pruning, rung {number} of {len(ladder)}", structure.widths)
                for number, structure in enumerate(ladder, 1)
            ],
        )


def _allowed(
    view: View, rungs: Sequence[tuple[str, Mapping[str, int]]]
) -> list[tuple[str, Structure]]:
    """The rungs with no group narrower than it may be; each once, the dense network left out."""
    groups = [group for group in view.prepared.groups if group.prunable]
    found: dict[tuple[int, ...], tuple[str, Structure]] = {}
    for name, wanted in rungs:
        widths = {
            group.group_id: allowed_width(
                group, wanted.get(group.group_id, group.channels), view.config
            )
            for group in groups
        }
        structure = Structure().with_widths(widths)
        found.setdefault(tuple(widths.values()), (name, structure))
    dense = tuple(group.channels for group in groups)
    return [rung for widths, rung in found.items() if widths != dense]


def attempts_of(decisions: Sequence[Decision]) -> list[Attempt]:
    """Each rung that was tried, and what came of it in the end: decisions about one that was
    trained further are one attempt."""
    found: list[Attempt] = []
    reached: Structure | None = None
    for decision in decisions:
        recovers = decision.structure == reached
        if decision.trained_further:
            recovers = found.pop().recovers
        found.append(Attempt(met=decision.accepted, recovers=recovers))
        if decision.accepted:
            reached = decision.structure
    return found


def why_ended(rungs: int, attempts: Sequence[Attempt], trained_long: int = 0) -> str:
    """Why nothing follows these attempts, where there are narrower rungs."""
    if next_move(rungs, attempts, trained_long, had_enough=False) is not None:
        return HAD_ENOUGH
    return "the floor does not allow a narrower one"


def next_move(
    rungs: int, attempts: Sequence[Attempt], trained_long: int = 0, *, had_enough: bool = True
) -> Move | None:
    """What follows these attempts; None at the end of the ladder.

    The first steps are a quarter of the ladder. A single step that misses the floor is tried once
    more after further training, and again until the search ``had_enough`` of trainings; and once
    more where the network was last trained for long after the first ``trained_long`` attempts.
    No rung is tried that lies beyond one that missed since the network was last trained for long.
    Training that gains nothing ends the climb: the same training again would be no other.
    """
    reached, step, missed = -1, max(1, rungs // 4), rungs
    recovered = missed_single = gained_nothing = False
    for number, attempt in enumerate(attempts):
        if number and number == trained_long:
            recovered, missed = True, rungs
        step = _short_of(missed, reached, step)
        gained_nothing = attempt.recovers and not attempt.met
        missed_single = not attempt.recovers and not attempt.met and step == 1
        if attempt.recovers:
            recovered, missed = attempt.met, rungs if attempt.met else missed
        elif attempt.met:
            reached, recovered = min(reached + step, rungs - 1), False
        else:
            step, missed = max(1, step // 2), reached + step
    if reached == rungs - 1:
        return None
    if not trained_long or trained_long < len(attempts):
        if gained_nothing or (missed_single and (reached < 0 or (recovered and had_enough))):
            return None
        if missed_single:
            return Move(rung=reached, recovers=True)
    step = _short_of(missed, reached, step)
    return Move(rung=min(reached + step, rungs - 1), recovers=False)


def _short_of(missed: int, reached: int, step: int) -> int:
    """The step down the ladder, shorter where it would lead to the rung that missed, or beyond."""
    return max(1, min(step, missed - 1 - reached))
