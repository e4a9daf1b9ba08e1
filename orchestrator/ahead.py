"""Work that is likely to be needed next: done while devices wait for a training.

Most trainings lose too much accuracy. While a target's candidates are trained, those of the round
that follows such a loss are screened on its device. They are ordinary work with ordinary keys: when
the state machine comes to ask for them, they are there; otherwise the device was idle anyway, and
no budget counts them. They are a whole round, done together as they would be later: a candidate
that keeps its accuracy after all waits for the rest of it before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from orchestrator import machine
from orchestrator import search_parts as parts
from orchestrator.states import AnyState, FineTuning, Proposing, Screening
from orchestrator.transition import Clock
from schemas.config import RunConfig
from schemas.work import FineTuned, Outcome, Work

Read = Callable[[Collection[str]], Mapping[str, Outcome]]
"""Key -> outcome, for those of the keys that are finished."""


def ahead_of(state: AnyState, read: Read, config: RunConfig, clock: Clock) -> tuple[Work, ...]:
    """What would be screened next if all that is being trained lost its accuracy.

    None on a device that shares this machine's cores with the trainings, or answers from a
    recording; nor for policies that search each candidate's programs, which is dear.
    """
    devices = {target.name: target.device for target in config.targets}
    if not isinstance(state, FineTuning) or devices[state.target] != "tracker":
        return ()
    lost: dict[str, Outcome] = {
        parts.fine_tuning(candidate, state.search.dense, config).key: FineTuned(
            network=candidate.parent.model_copy(update={"val_accuracy": 0.0})
        )
        for candidate in state.chosen
    }
    back = machine.step(state, lost, config, clock).next_state
    if not isinstance(back, Proposing):
        return ()
    needed = {**read(machine.needs_of(back, config)), **lost}
    following = machine.step(back, needed, config, clock).next_state
    if not isinstance(following, Screening):
        return ()
    works = (parts.screening(following, item, config) for item in following.candidates)
    return tuple(work for work in works if work.by == "transplant")


class Foresight:
    """Finds out once for each state what is worth doing while it waits."""

    def __init__(self, config: RunConfig, read: Read) -> None:
        self._config = config
        self._read = read
        self._known: dict[str, tuple[int, tuple[Work, ...]]] = {}
        self._given_up: set[str] = set()

    def works(self, state: AnyState, sequence: int, clock: Clock) -> list[Work]:
        """Those of the state that a target's event ``sequence`` led to."""
        known = self._known.get(state.target)
        if known is None or known[0] != sequence:
            known = (sequence, ahead_of(state, self._read, self._config, clock))
            self._known[state.target] = known
        return [work for work in known[1] if work.key not in self._given_up]

    def give_up(self, keys: Iterable[str]) -> None:
        """Work that failed for good is not begun ahead of its time again."""
        self._given_up.update(keys)
