"""How long each call of a compiled network takes inside it, on the device where it runs.

A program timed by itself finds its weights in the caches, which inside a network they may have
left. So the network is run with TVM's virtual machine being watched: the clock is read before and
after each call. What the watching costs is taken off, call by call. A call's arguments are handed
to the watch, which costs more than many a call, twice: when it is asked before the call, between
the end of the last watch and its own first look at the clock, and after the call, where it falls
into the call's time. The one is taken off the other.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

ATTRIBUTE = "cprune.attribute"

_SECONDS = 0.6
_FEWEST, _MOST = 6, 200
_TURNS = 6
_WARM_UP = 3
_OWN = "vm.builtin."


def attribute(machine: Any) -> str:
    """Run the network whose input was set; ``machine`` is its virtual machine's module.

    The answer is JSON: ``model_ms`` of the network unwatched, and ``calls``, pairs of function name
    and milliseconds in the order of the calls, those of the virtual machine's own functions left
    out. All are medians. The network runs watched and unwatched in turns, so that a device that
    changes its pace changes both alike.
    """
    clock = time.perf_counter_ns
    invoke = machine["invoke_stateful"]
    once_ns = 0
    for _ in range(_WARM_UP):
        began = clock()
        invoke("main")
        once_ns = clock() - began
    repeats = min(_MOST, max(_FEWEST, int(_SECONDS * 1e9 / max(once_ns, 1))))
    begun: list[int] = []
    calls: list[tuple[str, int]] = []
    unwatched_since_ns = 0

    def watch(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
        nonlocal unwatched_since_ns
        now = clock()
        if before:
            asking_ns = now - unwatched_since_ns
            unwatched_since_ns = clock()
            begun.append(unwatched_since_ns + asking_ns)
        else:
            calls.append((name, now - begun.pop()))
            unwatched_since_ns = clock()
        return 0  # go on

    whole_ns, runs = [], []
    for _ in range(_TURNS):
        machine["set_instrument"](None)
        for _ in range(-(-repeats // _TURNS)):
            began = clock()
            invoke("main")
            whole_ns.append(clock() - began)
        machine["set_instrument"](watch)
        for _ in range(-(-repeats // _TURNS)):
            calls.clear()
            unwatched_since_ns = clock()
            invoke("main")
            runs.append([took_ns for _, took_ns in calls])
    machine["set_instrument"](None)
    medians_ns = [statistics.median(took_ns) for took_ns in zip(*runs, strict=True)]
    return json.dumps(
        {
            "model_ms": statistics.median(whole_ns) / 1e6,
            "calls": [
                [name, max(0.0, took_ns) / 1e6]
                for (name, _), took_ns in zip(calls, medians_ns, strict=True)
                if not name.startswith(_OWN)
            ],
        }
    )
