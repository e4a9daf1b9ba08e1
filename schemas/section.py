"""The base of the configuration's parts."""

from __future__ import annotations

from typing import get_args

from pydantic import ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from schemas.base import Schema


class Section(Schema):
    """A part of the configuration. It is kept as JSON, which knows no infinite numbers.

    A truth value is not taken for a number.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = get_args(annotation) or (annotation,)
            if int in kinds:
                raise PydanticKnownError("int_type")
            if float in kinds:
                raise PydanticKnownError("float_type")
        return value
