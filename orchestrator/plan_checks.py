"""What a plan and the start of a run look at before any work: the configuration's names, and the
machine. Nothing of the user's code is imported here, and nothing is written."""

from __future__ import annotations

import ast
import difflib
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import doctor
from orchestrator.doctor import Check, wrong
from orchestrator.target_checks import target_checks

if TYPE_CHECKING:
    from schemas.config import RunConfig

OWN_NETWORKS = ("small_resnet", "resnet18_cifar", "vgg16_cifar", "mobilenet_v2_cifar")
DATA_SETS = ("digits", "drawn", "cifar10", "imagefolder")
KNOWN_TORCHVISION = ("resnet18", "mobilenet_v2", "vgg16_bn")
"""Networks of torchvision that need no import of it (5 s) to be known."""
CLUSTER_WAIT_S = 5.0


def start_checks(config: RunConfig) -> Iterator[Check]:
    """Everything that has to be well before a run is started."""
    yield from file_checks(config)
    yield from name_checks(config)
    yield from machine_checks(config)
    for index, target in enumerate(config.targets):
        yield from target_checks(index, target, here=not _cluster(config))


def file_checks(config: RunConfig) -> Iterator[Check]:
    """Every file and folder that the configuration names is there."""
    named: list[tuple[str, str | None]] = [
        ("model.checkpoint", config.model.checkpoint),
        ("data.root", config.data.root),
    ]
    for index, target in enumerate(config.targets):
        if target.device == "replay":
            named.append((f"targets[{index}].recording", target.recording))
    for name, value in named:
        if value is None or "://" in value:
            continue
        if Path(value).expanduser().exists():
            yield Check(name, "ok", value)
        else:
            cure = f"correct {name}; a relative path begins at the current folder"
            yield wrong(name, f"{value} does not exist", cure)


def machine_checks(config: RunConfig) -> Iterator[Check]:
    """A compiler, room on the disk, and what Ray needs to start."""
    yield doctor.check_compiler()
    yield doctor.check_disk(Path(config.output).expanduser())
    yield doctor.check_ray_token()
    if address := _cluster(config):
        yield _cluster_check(address)
    else:
        yield doctor.check_ray_folder()


# ------------------------------------------------------------------------------ names


def name_checks(config: RunConfig) -> Iterator[Check]:
    """The network, the data set and the metric exist under the names that are given."""
    yield _model_check(config.model.name)
    yield _named("data.name", config.data.name, DATA_SETS)
    if config.metric not in ("top1", "top5"):
        yield _reference_check("metric", config.metric)
    prune = config.prune
    if prune.latency_target_ms is not None and prune.policy in ("uniform", "global"):
        told = f"prune.policy {prune.policy} measures nothing before it has ended, so it cannot aim"
        yield wrong("prune.latency_target_ms", told, "leave it out or use another policy")


def _model_check(name: str) -> Check:
    prefix, colon, wanted = name.partition(":")
    if prefix != "torchvision" or not colon:
        return _named("model.name", name, OWN_NETWORKS)
    if wanted in KNOWN_TORCHVISION:
        return Check("model.name", "ok", name)
    code, output = doctor.probe(
        "import json, torchvision\n"
        "print(json.dumps(torchvision.models.list_models(module=torchvision.models)))"
    )
    if code != 0:
        return Check("model.name", "warn", f"{name}: torchvision could not be asked", "see doctor")
    names = json.loads(output.strip().splitlines()[-1])
    if wanted in names:
        return Check("model.name", "ok", name)
    close = difflib.get_close_matches(wanted, names, n=1) or ["resnet18"]
    cure = f"correct it, for instance to torchvision:{close[0]}"
    return wrong("model.name", f"torchvision has no classification network {wanted!r}", cure)


def _named(field: str, value: str, known: tuple[str, ...]) -> Check:
    """A name of ours, or a reference to the user's own function."""
    if value in known:
        return Check(field, "ok", value)
    if ":" in value:
        return _reference_check(field, value)
    more = (*known, "torchvision:NAME") if field == "model.name" else known
    if field == "model.name" and value in KNOWN_TORCHVISION:
        return wrong(field, f"there is no {value!r} of this project", f"use torchvision:{value}")
    close = difflib.get_close_matches(value, known, n=1)
    cure = f"did you mean {close[0]}?" if close else f"use {', '.join(more)} or module:function"
    return wrong(field, f"there is no {value!r}", cure)


def _reference_check(field: str, reference: str) -> Check:
    module, _, function = reference.partition(":")
    spec = _find(module)
    if spec is None:
        top = module.partition(".")[0]
        cure = f"put {top}.py beside the configuration, run from its folder, or install it"
        return wrong(field, f"{reference}: there is no module {module}", cure)
    names = _names_in(spec)
    if names is None or function in names:
        return Check(field, "ok", reference)
    close = difflib.get_close_matches(function, sorted(names), n=1)
    cure = "correct the name after the colon" + (f": {module}:{close[0]}" if close else "")
    return wrong(field, f"{reference}: {spec.origin} has no function {function!r}", cure)


def _find(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module would be imported from; packages around it are not imported either."""
    path = [os.getcwd(), *sys.path]
    parts = module.split(".")
    spec: importlib.machinery.ModuleSpec | None = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None and depth == 1:
            spec = _elsewhere(name)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _elsewhere(module: str) -> importlib.machinery.ModuleSpec | None:
    """A module that is found by other means than a search of folders."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _names_in(spec: importlib.machinery.ModuleSpec) -> set[str] | None:
    """Names that a module's source binds; None where they cannot be told without importing it."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue  # what is bound inside is not the module's
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {item.asname or item.name.partition(".")[0] for item in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names


# ---------------------------------------------------------------------------- cluster


def _cluster(config: RunConfig) -> str:
    """Where the cluster is; empty where Ray is started here."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS") or ""


def _cluster_check(address: str) -> Check:
    """Something answers there: Ray itself would wait for it for many minutes."""
    name = "cluster.address"
    host, _, port = address.rpartition(":")
    if "://" in address or address == "auto":
        return Check(name, "ok", address)
    if not host or not port.isdecimal():
        return wrong(name, f"{address!r} names no port", "write it as HOST:PORT, or auto")
    try:
        with socket.create_connection((host, int(port)), timeout=CLUSTER_WAIT_S):
            return Check(name, "ok", address)
    except (OSError, OverflowError) as error:
        found = f"nothing answers at {address} ({error})"
        cure = f"'ray start --head --port={port}' on {host}, or correct it (or RAY_ADDRESS)"
        return wrong(name, found, cure)
