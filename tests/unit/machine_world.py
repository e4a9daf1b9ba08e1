"""The state machine with every unit of work answered at once."""

from __future__ import annotations

from collections.abc import Mapping

import fake_world

from orchestrator import machine
from orchestrator.states import STATE, AnyState, Cancelled, Done, Failed
from orchestrator.transition import Clock
from schemas.config import RunConfig
from schemas.work import Outcome

CLOCK = Clock(wall_s=100.0)


class World:
    """Answers every work of a state and takes the step, keeping the outcomes."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.outcomes: dict[str, Outcome] = {}
        self.messages: list[str] = []

    def answer(self, state: AnyState, canned: Mapping[str, Outcome] | None = None) -> None:
        for work in machine.work_of(state, self.config):
            self.outcomes.setdefault(
                work.key, (canned or {}).get(work.kind) or fake_world.outcome_of(work)
            )

    def step(
        self, state: AnyState, canned: Mapping[str, Outcome] | None = None, clock: Clock = CLOCK
    ) -> AnyState:
        self.answer(state, canned)
        needed = {key: self.outcomes[key] for key in machine.needs_of(state, self.config)}
        assert not isinstance(state, Done | Failed | Cancelled)
        transition = machine.step(state, needed, self.config, clock)
        self.messages.append(transition.message)
        return STATE.validate_json(transition.next_state.model_dump_json())

    def until(self, *kinds: type) -> AnyState:
        return self.go_on(machine.start("host"), *kinds)

    def go_on(self, state: AnyState, *kinds: type) -> AnyState:
        for _ in range(200):
            state = self.step(state)
            if isinstance(state, kinds):
                return state
        raise AssertionError("never arrives")
