"""Writes ``docs/settings.md``, the reference of all settings, from the schemas.

python docs/make_settings.py
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from orchestrator.store.config_guard import UNTIL_DECIDED, is_changeable  # noqa: E402
from schemas.config import RunConfig  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
_HEAD = """# Settings

Made from `schemas/config.py` and `schemas/target.py` by `python docs/make_settings.py`.

A name ends in its unit. *Again*: may differ when a run is resumed; after a change of any other
setting give the run another name. Settings stand in the configuration's YAML, may come from the
environment (`CPRUNE_TUNE__TRIALS_PER_TASK=32`), and from the command line, which wins
(`--set tune.trials_per_task=32`, `--set targets.0.threads=2`).
"""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def page() -> str:
    """The page's text."""
    single = [
        (name, field)
        for name, field in RunConfig.model_fields.items()
        if _section(field.annotation) is None
    ]
    parts = [_HEAD, _part("A run", "", "A whole run.", single)]
    for name, field in RunConfig.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            path = f"{name}[]" if get_origin(field.annotation) is list else name
            fields = list(section.model_fields.items())
            parts.append(_part(f"`{path}`", f"{path}.", str(section.__doc__), fields))
    return "\n".join(parts)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The schema of a field that has settings of its own, of one or of a list."""
    kind = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _part(title: str, prefix: str, text: str, fields: list[tuple[str, FieldInfo]]) -> str:
    rows = [_row(prefix + name, field) for name, field in fields]
    told = text.replace("\n\n", " ").replace("\n    ", " ").replace("``", "`").strip()
    heading = f"## {title}\n\n{told}\n\n"
    return heading + "| setting | what it may be | default | |\n|---|---|---|---|\n" + "".join(rows)


def _row(name: str, field: FieldInfo) -> str:
    kinds = ", ".join([*_kinds(field.annotation), *_bounds(field)])
    told = (field.description or "").replace("|", "\\|")
    if is_changeable(name.replace("[]", "[0]")):
        told += " *Again.*"
    elif name in UNTIL_DECIDED:
        told += " *Again*, until the first candidate has been decided."
    return f"| `{name}` | {kinds} | {_default(field)} | {told.strip()} |\n"


def _kinds(annotation: Any) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return
    if origin in (Union, types.UnionType):
        for kind in inner:
            yield from _kinds(kind)
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in inner)
    elif origin is list:
        yield "a list"
    elif origin is dict:
        yield "names with values"
    elif hasattr(annotation, "__metadata__"):
        yield from _kinds(inner[0])
    else:
        yield _KINDS[annotation]


def _bounds(field: FieldInfo) -> Iterator[str]:
    for constraint in field.metadata:
        for short, words in _BOUNDS.items():
            bound = getattr(constraint, short, None)
            if bound is not None:
                yield f"{words} {bound}".removesuffix(".0")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None or value in ([], {}) else f"`{json.dumps(value).strip(chr(34))}`"


if __name__ == "__main__":
    PAGE.write_text(page())
