"""A run folder belongs to one configuration, of which only some fields may change later."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.states import AnyState, Done
from orchestrator.store.base import Ledger
from orchestrator.store.reader import search_of
from schemas.base import Schema
from schemas.config import RunConfig

# What does not change the result of a unit of work, so that those done and those to come agree:
# where the run lies and where its devices are, how many work at once, how long is waited for what.
CHANGEABLE = (
    "budget.*",
    "cluster.*",
    "fine_tune.max_parallel",
    "output",
    "records.*",
    "run",
    "targets*.max_devices",
    "targets*.tracker_host",
    "targets*.tracker_port",
    "train.timeout_s",
    "*_timeout_s",
    "*_wait_s",
)
UNTIL_DECIDED = ("prune.accuracy_floor", "prune.max_accuracy_drop")
"""Only decisions depend on these: they may change too, as long as there is none."""
_ABSENT = "not given"


class ConfigChanged(ValueError):
    """The run folder was begun with another configuration."""


class Change(Schema):
    """A field that differs, with both values."""

    field: str
    old: Any
    new: Any


def is_changeable(field: str) -> bool:
    """Whether a setting, such as ``targets[0].key``, may always differ when a run is resumed."""
    return _matches(field, CHANGEABLE)


def changes(old: RunConfig, new: RunConfig, changeable: Sequence[str] = CHANGEABLE) -> list[Change]:
    """The fields that differ and may not."""
    found: list[Change] = []
    _compare("", old.model_dump(mode="json"), new.model_dump(mode="json"), found)
    return [change for change in found if not _matches(change.field, changeable)]


def admit(ledger: Ledger, config: RunConfig, run_dir: str) -> str:
    """Refuse to go on with another configuration, once any work was done with the first one.

    Returns one line for people where the run begins anew with another one, else nothing.

    Raises:
        ConfigChanged: names every changed field with its old and its new value.
    """
    info = ledger.info()
    if info is None:
        return ""
    if not ledger.finished_keys():
        found = changes(info.config, config)
        return _anew(found) if found else ""
    states = [standing.state for standing in ledger.standings().values()]
    decided = any(_is_decided(state) for state in states)
    check(info.config, config, run_dir, () if decided else UNTIL_DECIDED)
    return ""


def check(old: RunConfig, new: RunConfig, run_dir: str, besides: Sequence[str] = ()) -> None:
    """Refuse another configuration. ``besides`` names further fields that may change.

    Raises:
        ConfigChanged: names every changed field with its old and its new value.
    """
    found = changes(old, new, (*CHANGEABLE, *besides))
    if found:
        listed = "; ".join(
            f"{item.field} was {item.old!r} and is now {item.new!r}" for item in found
        )
        raise ConfigChanged(
            f"{run_dir} was begun with another configuration: {listed}. Set it back, or give the "
            "new configuration another name in run. What may change while a run goes on: "
            + ", ".join((*CHANGEABLE, *besides))
        )


def _anew(found: Sequence[Change]) -> str:
    fields = ", ".join(change.field for change in found)
    return f"begins anew with another configuration ({fields}): no work was finished with the first"


def _is_decided(state: AnyState) -> bool:
    found = search_of(state)
    return isinstance(state, Done) or bool(found and found.decisions)


def _matches(field: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(field, pattern) for pattern in patterns)


def _compare(path: str, old: Any, new: Any, found: list[Change]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            _compare(_below(path, name), old.get(name, _ABSENT), new.get(name, _ABSENT), found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            _compare(f"{path}[{index}]", before, after, found)
    elif old != new:
        found.append(Change(field=path, old=old, new=new))


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
