"""What is looked at of each target before any work. Nothing is written, and no device is asked for
more than whether it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator import doctor
from orchestrator.devices import none_of
from orchestrator.doctor import Check, wrong
from orchestrator.wording import count
from workers.compiling.linking import NoLinker, check_linker, foreign_triple
from workers.errors import UserError
from workers.measuring.place import check_place

if TYPE_CHECKING:
    from schemas.target import TargetConfig

TRACKER_WAIT_S = 3.0


def target_checks(index: int, target: TargetConfig, *, here: bool) -> Iterator[Check]:
    """What is compiled for is known, and the device is to be had.

    ``here``: Ray is started on this machine, so a local device is, too.
    """
    described = target.tvm_target
    if isinstance(described, dict):
        known = _tvm_target_check(f"targets[{index}].tvm_target", described)
        yield known
        if known.level == "fail":
            return
        cores = described.get("num-cores")
        if isinstance(cores, int) and target.threads > cores:
            told = f"programs for {count(cores, 'core')} are measured with {target.threads} threads"
            cure = "give num-cores in tvm_target and threads the same number"
            yield Check(f"targets[{index}].threads", "warn", told, cure)
    name = f"target {target.name}"
    if target.device == "local" and target.key != type(target).model_fields["key"].default:
        told = f"the key {target.key!r} asks no tracker: the device is local, which is this machine"
        yield Check(f"targets[{index}].key", "warn", told, "write device: tracker, or leave it out")
    if here:
        try:
            check_place(target)
        except UserError as error:
            yield wrong(error.field.replace("[]", f"[{index}]"), error.message, error.hint)
            return
    if target.device == "replay":
        found = f"answers from {target.recording}: results will be labelled simulated"
        cure = "use device: local or tracker for real latencies"
        yield Check(name, "warn", found, cure)
    elif target.device == "tracker":
        yield _tracker_check(name, target)
    elif not here:
        yield Check(name, "ok", "the driver's machine, of the cluster")
    else:
        yield _local_check(name, target)


def _tvm_target_check(field: str, description: Mapping[str, object]) -> Check:
    if "kind" not in description:
        cure = "give it one, such as {kind: llvm, mcpu: ..., num-cores: ...}, or write host"
        return wrong(field, f"{description} has no kind", cure)
    code, output = doctor.probe(
        "import json\n"
        "from device_agents.lean_tvm import block_torch\n"
        "block_torch()\n"
        "from tvm.target import Target\n"
        f"target = Target(json.loads({json.dumps(dict(description))!r}))\n"
        "if 'cpu' in target.keys and 'num-cores' not in target.attrs:\n"
        "    raise ValueError('it does not give num-cores, the number of cores to compile for')\n"
        "cpu = target if target.kind.name == 'llvm' else target.host\n"
        "name = cpu.attrs.get('mcpu') if cpu is not None and cpu.kind.name == 'llvm' else None\n"
        "if name is not None:\n"
        "    import difflib\n"
        "    from tvm.target import codegen\n"
        "    known = sorted(str(arch) for arch in codegen.llvm_get_cpu_archlist(cpu))\n"
        "    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0) or ['?']\n"
        "    if str(name) not in known:\n"
        "        raise ValueError(f'LLVM knows no mcpu {name} there, only others, as {close[0]}')"
    )
    if code == 0:
        return _linker_check(field, description)
    if code == 1:
        why = output.strip().splitlines()[-1].partition(": ")[2]
        why = why.partition(" Target creation from")[0]
        return wrong(
            field, f"TVM refuses it: {why[:300].rstrip('. ')}", "correct it, or write host"
        )
    return Check(field, "warn", f"{description}: TVM could not be asked", "see cprune doctor")


def _linker_check(field: str, description: Mapping[str, object]) -> Check:
    triple = foreign_triple(description)
    try:
        if triple is not None:
            check_linker(triple)
    except NoLinker as error:
        found, _, cure = str(error).partition(": ")
        return wrong(field, found, cure)
    return Check(field, "ok", str(description))


def _tracker_check(name: str, target: TargetConfig) -> Check:
    from device_agents.tracker_wire import TrackerUnreachable, tracker_summary

    host, port = target.tracker_host, target.tracker_port or 0
    try:
        summary = tracker_summary(host, port, TRACKER_WAIT_S)
    except TrackerUnreachable as error:
        cure = "start it, or correct tracker_host and tracker_port"
        return Check(name, "fail", str(error), cure)
    devices = summary.registered(target.key)
    if not devices:
        cure = "register a device, or correct targets[].key"
        return Check(name, "fail", none_of(target, summary), cure)
    found = f"the tracker at {host}:{port} has {count(devices, 'device')} of the key {target.key!r}"
    return Check(name, "ok", found)


def _local_check(name: str, target: TargetConfig) -> Check:
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    missing = [core for core in target.cores or [] if here and core not in here]
    if missing:
        cure = f"name cores among {here}"
        return wrong(name, f"cores {missing} are not this process's to use", cure)
    available = len(target.cores or here) or os.cpu_count() or 1
    if target.threads > available:
        cure = f"set threads to at most {available}, or 0 for all"
        return wrong(name, f"{target.threads} threads on {count(available, 'core')}", cure)
    return Check(name, "ok", f"this machine, {count(target.threads or available, 'thread')}")
