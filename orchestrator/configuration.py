"""Reading a run's configuration: a YAML file, then the environment, then the command line.

Later sources win. Every problem becomes one sentence that names where the value came from, the
field, what was given, what is allowed and what to do; nothing here ends in a traceback.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from orchestrator.wording import count

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from schemas.config import RunConfig

ENVIRONMENT_PREFIX = "CPRUNE_"

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
"""Of a mapping's key: a text, or << for what is merged into the mapping."""

FieldPath = tuple[str | int, ...]


class CommandError(Exception):
    """Something the user can put right; its text is shown as it is, without a traceback.

    ``exit_code`` is 2 for wrong input, 1 for a machine or a run that is not fit.
    """

    exit_code = 2


class ConfigurationError(CommandError):
    """A configuration that cannot be used: ``problems`` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class _Sources:
    """The merged values, and where each of them was written."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[FieldPath, str] = field(default_factory=dict)
    overridden: dict[FieldPath, str] = field(default_factory=dict)
    """What did not come from the file: environment variables and options by their path."""

    def origin(self, path: FieldPath) -> str:
        """Where the value at ``path`` was written, or the parts of it, or the section around it."""
        if path in self.overridden:
            return self.overridden[path]
        below = [where for item, where in self.overridden.items() if item[: len(path)] == path]
        around = [path[:length] for length in range(len(path), 0, -1)]
        near = next((self.origins[item] for item in around if item in self.origins), "")
        if not path or not below:
            return near or self.file
        told = ", ".join(dict.fromkeys(below))
        return f"{near}, with {told}" if path in self.origins else told


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> RunConfig:
    """The configuration in the YAML file ``path``, with environment and command line applied.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` each, as given to ``--set``; an index names an element of a list
            (``targets.0.threads=2``). Values are read as YAML.
        environ: the environment, ``os.environ`` when None. ``CPRUNE_A__B`` sets ``a.b``.

    Raises:
        ConfigurationError: with one sentence for every problem found.
    """
    from pydantic import ValidationError

    from schemas.config import RunConfig

    sources = _read_file(Path(path))
    problems: list[str] = []
    for target, text, origin in _environment(os.environ if environ is None else environ, problems):
        _assign(sources, target, text, origin, problems)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            problems.append(
                f"--set {override}: a setting is written as a.b=value, for example "
                "--set tune.trials_per_task=32."
            )
            continue
        _assign(sources, _path_of(name.strip().split(".")), text, f"--set {override}", problems)
    if problems:
        raise ConfigurationError(problems)
    try:
        return RunConfig.model_validate(sources.values)
    except ValidationError as error:
        raise ConfigurationError(_sentences(error.errors(), sources)) from None


# ------------------------------------------------------------------------------ sources


def _read_file(path: Path) -> _Sources:
    import yaml

    if not path.exists():
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        hint = f" Did you mean {path.parent / close[0]}?" if close else ""
        raise ConfigurationError(
            [f"{path}: there is no such configuration file; give the path of a YAML file.{hint}"]
        )
    if path.is_dir():
        raise ConfigurationError([f"{path}: this is a folder; give the path of a YAML file."])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: the file cannot be read as text ({error})."]) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigurationError(
            [f"{path}{line}: this is not valid YAML ({error.problem}); correct that line."]
        ) from None
    except yaml.YAMLError as error:
        raise ConfigurationError([f"{path}: this is not valid YAML ({error})."]) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            [
                f"{path}: the file holds a {_kind(values)}; "
                "it must hold a mapping of sections, such as 'model:' and 'prune:'."
            ]
        )
    sources = _Sources(file=str(path), values=values)
    problems: list[str] = []
    if node is not None:
        _lines(node, (), str(path), sources.origins, problems)
    if problems:
        raise ConfigurationError(problems)
    return sources


def _lines(
    node: Any,
    path: FieldPath,
    file: str,
    origins: dict[FieldPath, str],
    problems: list[str],
    around: tuple[Any, ...] = (),
) -> None:
    """Note the line of every key below ``node``; keys given twice or no texts, aliases in a ring.

    ``around``: the nodes that this one stands in.
    """
    import yaml

    if any(node is outer for outer in around):
        problems.append(
            f"{file}, line {node.start_mark.line + 1}: {_dotted(path)} is an alias of what it "
            "stands in; write it out."
        )
        return
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            below = (*path, str(key.value))
            where = f"{file}, line {key.start_mark.line + 1}"
            if key.tag not in _KEY_TAGS and _model(path) is not None:
                problems.append(
                    f"{where}: the key {key.value} is no name of a setting; correct or remove it."
                )
            if below in origins:
                problems.append(f"{where}: {_dotted(below)} is given twice; keep one of the two.")
            origins[below] = where
            _lines(value, below, file, origins, problems, around)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, index)
            origins[below] = f"{file}, line {value.start_mark.line + 1}"
            _lines(value, below, file, origins, problems, around)


def _environment(
    environ: Mapping[str, str], problems: list[str]
) -> Iterable[tuple[FieldPath, str, str]]:
    """Settings among the environment's variables.

    A name with two underscores in a row, or that of a top-level field, is a setting. Others that
    begin with CPRUNE_ belong to something else, unless they are a near miss of a field's name.
    """
    from schemas.config import RunConfig

    known = list(RunConfig.model_fields)
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        parts = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if len(parts) == 1 and parts[0] not in known:
            joined = {"_".join(map(str, path)): "__".join(map(str, path)) for path in _all_paths()}
            names = {name: name for name in known} | joined
            close = difflib.get_close_matches(parts[0], names, n=1, cutoff=0.8)
            if close:
                problems.append(
                    f"environment variable {name}: there is no setting {parts[0]}; "
                    f"did you mean {ENVIRONMENT_PREFIX}{names[close[0]].upper()}?"
                )
            continue
        yield _path_of(parts), environ[name], f"environment variable {name}"


def _path_of(parts: Sequence[str]) -> FieldPath:
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _assign(
    sources: _Sources, path: FieldPath, text: str, origin: str, problems: list[str]
) -> None:
    """Put the YAML value ``text`` at ``path``, making sections on the way."""
    import yaml

    if "" in path:
        problems.append(f"{origin}: a name is missing; a setting is named as in tune.round_size.")
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"{origin}: the value is not valid YAML; put it in quotes.")
        return
    holder: Any = sources.values
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(holder, dict) and isinstance(part, str):
            if last:
                holder[part] = value
            elif holder.get(part) is None:
                holder[part] = [] if isinstance(path[depth + 1], int) else {}
        elif isinstance(holder, list) and isinstance(part, int) and part <= len(holder):
            if part == len(holder):
                holder.append({})
            if last:
                holder[part] = value
        elif isinstance(holder, list) and isinstance(part, int):
            above = _dotted(path[:depth])
            problems.append(
                f"{origin}: {above} has {count(len(holder), 'element')} in the file, counted from "
                f"0; the next one is {above}[{len(holder)}]."
            )
            return
        else:
            above = _dotted(path[:depth]) or "the configuration"
            problems.append(
                f"{origin}: {above} is a {_kind(holder)}, which has no element {part!r}; "
                "name a field of it, or give the whole value."
            )
            return
        if not last:
            holder = holder[part]
    for noted in (sources.origins, sources.overridden):
        for known in [item for item in noted if item[: len(path)] == path]:
            del noted[known]
    sources.origins[path] = sources.overridden[path] = origin


# ---------------------------------------------------------------------------- sentences


def _sentences(errors: Sequence[Any], sources: _Sources) -> list[str]:
    """One sentence for every field that pydantic refused."""
    by_path: dict[FieldPath, list[Any]] = {}
    for error in errors:
        by_path.setdefault(_known_path(tuple(error["loc"])), []).append(error)
    sentences: list[str] = []
    for path, group in by_path.items():
        sentence = f"{sources.origin(path)}: {_sentence(path, group)}"
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


def _sentence(path: FieldPath, group: Sequence[Any]) -> str:
    error = group[0]
    name, kind, given = _dotted(path), str(error["type"]), error.get("input")
    info = _field(path)
    about = f" ({info.description.rstrip('.')})" if info is not None and info.description else ""
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "invalid_key":
        return f"{name} is no text; put the key in quotes."
    if kind == "missing":
        if name == "prune":
            return (
                "the section prune is missing; add it with either prune.accuracy_floor or "
                "prune.max_accuracy_drop, for example 'max_accuracy_drop: 0.01'."
            )
        return f"{name} is missing; add it{about}."
    if kind == "value_error":
        message = str(error["msg"]).removeprefix("Value error, ")
        if given is not None and not isinstance(given, dict | list):
            message = f"{name} is {given!r}: {message}"
        elif path and not message.startswith(str(path[0])):
            message = f"{name}: {message}"
        return f"{message}."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        model = _model(path)
        keys = f" with keys such as {', '.join(list(model.model_fields)[:4])}" if model else ""
        other = "" if model else " or " + str(group[-1].get("ctx", {}).get("expected", "a mapping"))
        return f"{name} is {_shown(given)}; it must be a section{keys}{other}; correct it."
    allowed = " or ".join(dict.fromkeys(_allowed(item) for item in group))
    hint = ""
    if kind.startswith(("less_than", "greater_than")) and isinstance(given, int | float):
        if 1.0 in (error["ctx"].get("le"), error["ctx"].get("lt")) and 1 <= given <= 100:
            hint = f"; accuracies and shares are fractions: write {given / 100:g} for {given:g} %"
    if kind == "literal_error" or len(group) > 1:
        choices = re.findall(r"'([^']+)'", allowed)
        close = difflib.get_close_matches(str(given), choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
    if kind == "string_type" and isinstance(given, int | float):
        hint = f"; put it in quotes: '{given}'"
    told = f"{name} is {_shown(given)}, but it must be {allowed}{about}{hint or '; correct it'}"
    return told if told.endswith("?") else f"{told}."


_OTHER_WORDS = {
    "folder": "root",
    "lr": "learning_rate",
    "optimiser": "optimizer",
    "path": "root",
    "pretrained": "checkpoint",
    "weights": "checkpoint",
}
"""What other projects call a setting of the same section."""


def _unknown_key(path: FieldPath) -> str:
    parent, key = path[:-1], str(path[-1])
    model = _model(parent)
    known = list(model.model_fields) if model else []
    section = _dotted(parent) or "the top level"
    close = difflib.get_close_matches(key, known, n=1)
    close = close or [name for name in known if key in name.split("_") or name.startswith(key)]
    if close:
        return (
            f"{_dotted(path)} is not a setting; did you mean {_dotted((*parent, close[0]))}? "
            "Correct the name or remove it."
        )
    meant = _OTHER_WORDS.get(key, "")
    if meant in known:
        return f"{_dotted(path)} is not a setting; write it as {_dotted((*parent, meant))}."
    others = [_dotted(other) for other in _all_paths() if other[-1] == key]
    if others:
        return f"{_dotted(path)} is not a setting; write it as {' or '.join(others)}."
    return f"{_dotted(path)} is not a setting; remove it. {section} takes: {', '.join(known)}."


_BOUNDS = {
    "greater_than": ("gt", "greater than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
}


def _allowed(error: Any) -> str:
    """What the field takes, from one pydantic error."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind in _BOUNDS:
        key, text = _BOUNDS[kind]
        return text.format(f"{context[key]:g}")
    if kind == "literal_error":
        return f"{context['expected']}"
    if kind == "finite_number":
        return "a finite number"
    if kind == "invalid-json-value":
        return "a text, a number, true, false, a list or a mapping"
    if kind.startswith("int"):
        return "a whole number"
    if kind.startswith("float"):
        return "a number"
    if kind.startswith("bool"):
        return "true or false"
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    if kind.startswith("string"):
        return "a text"
    if kind.startswith(("list", "tuple")):
        return "a list"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind.startswith("dict"):
        return "a mapping"
    message = str(error["msg"])
    return message[0].lower() + message[1:]


# ---------------------------------------------------------------------- schema walking


def _dotted(path: FieldPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _models_in(annotation: Any) -> list[Any]:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _model(path: FieldPath) -> Any | None:
    """The schema of the section at ``path``; None where there is none."""
    from schemas.config import RunConfig

    model: Any = RunConfig
    for part in path:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return None
        found = _models_in(model.model_fields[part].annotation)
        if not found:
            return None
        model = found[0]
    return model


def _field(path: FieldPath) -> FieldInfo | None:
    if not path or isinstance(path[-1], int):
        return None
    model = _model(path[:-1])
    found: FieldInfo | None = model.model_fields.get(path[-1]) if model else None
    return found


def _known_path(loc: FieldPath) -> FieldPath:
    """``loc`` without the branches of unions, which pydantic appends to it."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(part, str) and path and _model(tuple(path)) is None:
            break
        path.append(part)
    return tuple(path)


def _all_paths() -> list[FieldPath]:
    from schemas.config import RunConfig

    paths: list[FieldPath] = []
    for name, info in RunConfig.model_fields.items():
        for model in _models_in(info.annotation):
            first = (name, 0) if get_origin(info.annotation) is list else (name,)
            paths += [(*first, below) for below in model.model_fields]
    return paths


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "truth value", type(None): "blank"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")


def _shown(value: Any) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def resolved_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML text, defaults included."""
    import yaml

    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)
    return text
