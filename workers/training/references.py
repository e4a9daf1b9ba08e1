"""Resolves ``module:function`` references in a configuration, and checks arguments in it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from workers.errors import UserError, cause_of


def check_count(field: str, value: object) -> None:
    """Raises ``UserError`` that names the field where the value is no whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(field, f"{value!r} is not a whole number of at least 1", "correct it")


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raises ``UserError`` that names the field where the value is no number from low to high."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return
    raise UserError(field, f"{value!r} is not a number from {low:g} to {high:g}", "correct it")


def resolve_reference(reference: str, field: str) -> Callable[..., Any]:
    """The callable that ``module:function`` names; ``field`` is where the reference stands.

    The working directory is put on ``sys.path``, so that a module next to the configuration is
    found. Raises ``UserError`` when the module does not import or has no such callable.
    """
    module_name, _, attribute = reference.partition(":")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        package = module_name.split(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        )
        raise UserError(
            field,
            f"cannot import {module_name!r} of {reference!r} ({cause_of(error)})",
            f"run from the folder that holds {package}, or install it"
            if is_missing
            else f"correct {module_name}, or install what it imports",
        ) from error
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        raise UserError(
            field,
            f"{module_name} has no function {attribute!r}",
            "correct the name after the colon",
        )
    return function


def call_reference(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    offered: Mapping[str, Any],
    field: str,
    name: str,
) -> Any:
    """Calls a user's function with ``arguments``, and those of ``offered`` that it has a name for.

    An exception of the function becomes a ``UserError`` that names ``field``, and the function as
    the configuration does, by ``name``, with the arguments it was given there.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters}
    extra = {
        key: value
        for key, value in offered.items()
        if key not in arguments and (takes_any or key in known)
    }
    try:
        return function(**{**extra, **arguments})
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            field,
            f"{name}({given}) failed with {cause_of(error)}",
            f"correct it, or the {field.rsplit('.', 1)[0]}.arguments handed to it",
        ) from error
