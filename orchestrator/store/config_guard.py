"""A run folder belongs to one configuration; only its budgets may change on a later start."""

from __future__ import annotations

from typing import Any

from schemas.base import Schema, content_key
from schemas.config import RunConfig

CHANGEABLE = ("budget",)
_ABSENT = "not given"


class ConfigChanged(ValueError):
    """The run folder was begun with another configuration."""


class Change(Schema):
    """A field that differs, with both values."""

    field: str
    old: Any
    new: Any


def digest(config: RunConfig) -> str:
    """The key of everything that may not change."""
    return content_key(config.model_dump(mode="json", exclude=set(CHANGEABLE)))


def changes(old: RunConfig, new: RunConfig) -> list[Change]:
    """The fields that differ and may not."""
    found: list[Change] = []
    _compare("", old.model_dump(mode="json"), new.model_dump(mode="json"), found)
    return [change for change in found if change.field.split(".")[0] not in CHANGEABLE]


def check(old: RunConfig, new: RunConfig, run_dir: str) -> None:
    """Refuse to go on with another configuration.

    Raises:
        ConfigChanged: names every changed field with its old and its new value.
    """
    found = changes(old, new)
    if found:
        listed = "; ".join(
            f"{item.field} was {item.old!r} and is now {item.new!r}" for item in found
        )
        raise ConfigChanged(
            f"{run_dir} was begun with another configuration, of which only budget.* may change: "
            f"{listed}. Set it back, or give the new configuration another name in run"
        )


def _compare(path: str, old: Any, new: Any, found: list[Change]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            inner = f"{path}.{name}" if path else str(name)
            _compare(inner, old.get(name, _ABSENT), new.get(name, _ABSENT), found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            _compare(f"{path}[{index}]", before, after, found)
    elif old != new:
        found.append(Change(field=path, old=old, new=new))
