"""The states of one target's search, as data, and the transitions declared between them.

A state carries only what it needs. What the search has learnt so far travels along in ``Search``;
large outcomes are not copied into it but named by the key of the work that made them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from schemas.base import Schema
from schemas.network import Structure, Trained
from schemas.work import Candidate


class RankedTask(Schema):
    """A task and what it costs the network: the cost of a call times subgraphs."""

    task_id: str
    name: str
    call_ms: float
    total_ms: float
    share: float = Field(description="Of the sum over all tasks.")


class Decision(Schema):
    """One candidate decided upon, by the keys of the work that led to it."""

    round: int
    candidate_id: str
    task_id: str
    task_name: str
    groups: tuple[str, ...]
    structure: Structure
    screen_key: str | None = Field(description="None for a policy that does not screen.")
    fine_tune_key: str | None = None
    compare_key: str | None = None
    val_accuracy: float | None = Field(default=None, description="None where it was not trained.")
    trained_further: int = Field(
        default=0, description="Number of times that its training had gone on."
    )
    long_training: bool = Field(
        default=False, description="Whether it was trained as long as the final network is."
    )
    accepted: bool
    not_faster: bool = Field(
        default=False, description="Refused by its programs, or compared with its parent."
    )
    slower: tuple[str, ...] = Field(
        default=(),
        description="Of its groups, those whose first layer took longer than before, or did not "
        "run.",
    )
    kept_share: float | None = Field(
        default=None,
        description="Of a cut of the whole network: what it was expected to leave of the latency.",
    )
    reason: str

    @property
    def lost_accuracy(self) -> bool:
        """Whether it was trained and then refused before anything was compared."""
        return not self.accepted and self.fine_tune_key is not None and self.compare_key is None


class Contender(Schema):
    """A candidate that has been trained and meets the accuracy gates."""

    candidate: Candidate
    network: Trained


class Search(Schema):
    """What the search of one target knows."""

    prepare_key: str = Field(description="Work whose outcome holds the channel groups.")
    dense: Trained
    uniform: Trained | None
    floor: float
    current: Trained
    wider: Trained | None = Field(
        default=None,
        description="Where steps are taken unmeasured: the pruned network before the current one.",
    )
    trained_key: str = Field(description="Work whose outcome holds the current network's weights.")
    tuned_key: str = Field(description="Work whose outcome holds the current network's programs.")
    dense_tuned_key: str | None = Field(
        default=None, description="Work whose outcome holds the dense network's programs."
    )
    began_s: float | None = Field(default=None, description="Wall seconds of the run at the start.")
    round: int = 0
    accepted: int = 0
    recovered_after: int = Field(
        default=0, description="Decisions before the current network was last trained for long."
    )
    set_aside: tuple[str, ...] = Field(default=(), description="Tasks, until a step is accepted.")
    decisions: tuple[Decision, ...] = ()
    current_ms: float = Field(default=0.0, description="Of the whole current network.")
    device_s: float = Field(default=0.0, description="Device time of the search loop.")
    train_s: float = Field(default=0.0, description="Training time of its candidates.")
    measured_programs: int = Field(default=0, description="By the search loop.")
    screened: tuple[str, ...] = Field(
        default=(), description="Candidates whose screening is counted in what was spent."
    )
    trained_long: tuple[str, ...] = Field(
        default=(), description="Long trainings of accepted networks that are counted there, too."
    )
    stopped_by: str = ""
    searched_s: float = Field(default=0.0, description="Wall seconds it took, once it is stopped.")

    @property
    def since_accepted(self) -> tuple[Decision, ...]:
        """Decisions about cuts of the current network."""
        latest = max((n for n, item in enumerate(self.decisions) if item.accepted), default=-1)
        return self.decisions[latest + 1 :]

    @property
    def lost_cuts(self) -> tuple[Decision, ...]:
        """Cuts of the current network that were trained for long and lost too much accuracy."""
        before = len(self.decisions) - len(self.since_accepted)
        since = self.decisions[max(before, self.recovered_after) :]
        return tuple(
            item
            for item in since
            if item.lost_accuracy
            and item.long_training
            and item.structure != self.current.structure
        )

    @property
    def ended_by_itself(self) -> bool:
        """Whether no step was left, rather than no budget, or nothing more to reach."""
        return not self.stopped_by.startswith(("budget.", "prune."))


class _State(Schema):
    is_terminal: ClassVar[bool] = False

    target: str


class Preparing(_State):
    """The dense network is loaded or trained; with it the uniform one, where asked for."""

    kind: Literal["preparing"] = "preparing"


class Tuning(_State):
    """Programs are searched for the dense network."""

    kind: Literal["tuning"] = "tuning"
    search: Search


class Ranking(_State):
    """The current network's tasks are ordered by what they cost."""

    kind: Literal["ranking"] = "ranking"
    search: Search


class Proposing(_State):
    """Candidates are made for the slowest tasks, or the search ends."""

    kind: Literal["proposing"] = "proposing"
    search: Search
    ranking: tuple[RankedTask, ...]


class Screening(_State):
    """The candidates' programs are transplanted and measured."""

    kind: Literal["screening"] = "screening"
    search: Search
    ranking: tuple[RankedTask, ...]
    candidates: tuple[Candidate, ...]


class FineTuning(_State):
    """The most promising candidates are trained."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    search: Search
    ranking: tuple[RankedTask, ...]
    chosen: tuple[Candidate, ...]
    waiting: tuple[Candidate, ...] = Field(description="Fast enough too, left for another round.")


class Judging(_State):
    """Whole compiled networks are compared with their parent on the device."""

    kind: Literal["judging"] = "judging"
    search: Search
    ranking: tuple[RankedTask, ...]
    contenders: tuple[Contender, ...]
    waiting: tuple[Candidate, ...]


class Retuning(_State):
    """The tasks an accepted step changed are searched a little further."""

    kind: Literal["retuning"] = "retuning"
    search: Search
    modules: tuple[str, ...] = Field(description="Torch modules of the changed tasks.")


class FinishTraining(_State):
    """No step is left; the network is trained for long. With what it regains the search goes on."""

    kind: Literal["finish_training"] = "finish_training"
    search: Search
    goes_on: bool = Field(
        default=False, description="Whether the search goes on afterwards whatever is regained."
    )


class FinishTuning(_State):
    """The final network is tuned for long; then the uniform one, if there is one, and the baseline,
    for at least as long. Where a search measured nothing the network before its last step is tuned
    too, and the two are compared."""

    kind: Literal["finish_tuning"] = "finish_tuning"
    search: Search
    final: Trained
    wider: Trained | None = Field(
        default=None, description="The one before the last step, until the two are compared."
    )
    tunes_wider: bool = Field(default=False, description="Whether that one's turn has come.")
    uniform_trials: dict[str, int] | None = Field(
        default=None,
        description="Torch module -> trials of the uniform network's task where it needs more than "
        "the configured total; None while the final network is being tuned.",
    )
    baseline_trials: dict[str, int] | None = Field(
        default=None,
        description="The same of the baseline's; None while another network is being tuned.",
    )


class Choosing(_State):
    """The networks before and after the last step are compared: the faster one is the final one."""

    kind: Literal["choosing"] = "choosing"
    search: Search
    final: Trained
    wider: Trained


class Exporting(_State):
    """The deployable artefacts are written, loaded, measured and checked."""

    kind: Literal["exporting"] = "exporting"
    search: Search
    final: Trained


class Done(_State):
    """Everything has been handed over. With more of the budget that ended it, it goes on."""

    is_terminal: ClassVar[bool] = True

    kind: Literal["done"] = "done"
    search: Search
    final: Trained


WorkingState = Annotated[
    Preparing
    | Tuning
    | Ranking
    | Proposing
    | Screening
    | FineTuning
    | Judging
    | Retuning
    | FinishTraining
    | FinishTuning
    | Choosing
    | Exporting,
    Field(discriminator="kind"),
]


class Failed(_State):
    """The target cannot go on. The same command goes on from ``resume``."""

    is_terminal: ClassVar[bool] = True

    kind: Literal["failed"] = "failed"
    error: str
    wrong_input: bool = Field(
        default=False, description="Whether the configuration, or what it names, has to be mended."
    )
    resume: WorkingState


class Cancelled(_State):
    """The user stopped the run. The same command goes on from ``resume``."""

    is_terminal: ClassVar[bool] = True

    kind: Literal["cancelled"] = "cancelled"
    resume: WorkingState


AnyState = Annotated[
    Preparing
    | Tuning
    | Ranking
    | Proposing
    | Screening
    | FineTuning
    | Judging
    | Retuning
    | FinishTraining
    | FinishTuning
    | Choosing
    | Exporting
    | Done
    | Failed
    | Cancelled,
    Field(discriminator="kind"),
]

STATE: TypeAdapter[AnyState] = TypeAdapter(AnyState)

_FORWARD: dict[type[_State], tuple[type[_State], ...]] = {
    Preparing: (Tuning,),
    Tuning: (Ranking,),
    Ranking: (Proposing,),
    Proposing: (Screening, FineTuning, FinishTraining),
    Screening: (FineTuning, Proposing),
    FineTuning: (Judging, Ranking, Proposing),
    Judging: (Retuning, Ranking, Proposing),
    Retuning: (Ranking,),
    FinishTraining: (FinishTuning, Ranking),
    FinishTuning: (FinishTuning, Choosing, Exporting),
    Choosing: (FinishTuning,),
    Exporting: (Done,),
}
_THINKING: tuple[type[_State], ...] = (Ranking, Proposing)  # without work there is none to fail
_AT_WORK = tuple(state for state in _FORWARD if state not in _THINKING)

TRANSITIONS: dict[type[_State], tuple[type[_State], ...]] = {
    **{
        state: (*following, *((Failed,) if state in _AT_WORK else ()), Cancelled)
        for state, following in _FORWARD.items()
    },
    Done: (Ranking,),
    Failed: _AT_WORK,
    Cancelled: tuple(_FORWARD),
}
"""Which state may follow which. The machine and the ledger both refuse every other transition."""


def kind_of(state: type[_State]) -> str:
    """The name under which a class of states is stored."""
    return str(state.model_fields["kind"].default)


ALLOWED: frozenset[tuple[str, str]] = frozenset(
    (kind_of(before), kind_of(after))
    for before, following in TRANSITIONS.items()
    for after in following
)
"""The transition table by stored names."""
