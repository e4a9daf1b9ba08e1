"""The base of every schema: closed (unknown keys are errors) and immutable."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

FOR_KEY = {"for_key": True}
"""Serialisation context of content keys."""


class Schema(BaseModel):
    """A closed, immutable record. Unknown keys are errors; change one with ``model_copy``."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Timed(Schema):
    """A record with fields that say how long something took: the same one, whatever they say."""

    left_out_of_keys: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _timeless_in_keys(
        self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        data: dict[str, Any] = serialise(self)
        if info.context == FOR_KEY:
            for name in self.left_out_of_keys:
                data.pop(name)
        return data


def content_key(*parts: Any) -> str:
    """The sha256 (hex) of the canonical JSON text of ``parts``.

    ``Schema`` instances are written by their JSON form, so that equal content has an equal key in
    every process and on every machine. What says how long something took is left out.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", context=FOR_KEY)
    raise TypeError(f"cannot make a content key of {type(value).__name__}")
