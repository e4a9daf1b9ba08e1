"""The reference of all settings is made from the schemas, and each setting is described in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.config import RunConfig
from schemas.target import TargetConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        elif name == "targets":
            yield from settings(TargetConfig, "targets[].")
        else:
            yield prefix + name, field


def test_the_page_is_what_the_schemas_say(maker: ModuleType) -> None:
    assert (DOCS / "settings.md").read_text() == maker.page(), "run: python docs/make_settings.py"


@pytest.mark.parametrize(
    ("name", "field"), list(settings(RunConfig)), ids=lambda value: str(value)[:40]
)
def test_every_setting_is_described(maker: ModuleType, name: str, field: FieldInfo) -> None:
    assert field.description and field.description.endswith(".")
    assert f"| `{name}` |" in maker.page()


def test_a_row_says_kind_bounds_default_and_whether_it_may_change(maker: ModuleType) -> None:
    lines = maker.page().splitlines()
    (rounds,) = [line for line in lines if line.startswith("| `budget.max_rounds`")]
    assert "| whole number, at least 0 | `30` |" in rounds and rounds.endswith("*Again.* |")
    (policy,) = [line for line in lines if line.startswith("| `prune.policy`")]
    assert "`parallel`, `paper`" in policy and "*Again" not in policy
    (floor,) = [line for line in lines if line.startswith("| `prune.accuracy_floor`")]
    assert "| number, at least 0, at most 1 | none |" in floor and "until the first" in floor
