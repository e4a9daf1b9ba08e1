"""The gauge's process: TVM's runtime alone and one session to a device.

A device that hangs takes this process with it, never the caller: ``workers.measuring.device_gauge``
ends and replaces it. Started by that module; not a command of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from device_agents.attribution import ATTRIBUTE
from device_agents.lean_tvm import import_runtime
from device_agents.processes import serve
from workers.measuring.pairs import take_pairs

_COLD_CALLS = 11
_FILL = "tvm.contrib.random.random_fill_for_measure"


class _State:
    """The open session, with what stays loaded in it."""

    session: Any = None
    place: Any = None
    runs_on: str = "cpu"
    canary: Any = None
    info: Any = None
    networks: dict[str, Any]


_state = _State()
_state.networks = {}


def main() -> None:
    """Import TVM's runtime, then answer until the parent closes the stream."""
    import_runtime()
    serve(
        {
            "open": _open,
            "close": _close,
            "program": _program,
            "check": _check,
            "pair": _pair,
            "attribute": _attribute,
            "run": _run,
            "canary": _canary,
        }
    )


def _open(request: dict[str, Any]) -> dict[str, Any]:
    from device_agents.session import open_session

    _close({})
    _state.session = open_session(
        request["host"],
        request["port"],
        request["key"],
        lease_s=request["lease_s"],
        wait_s=request["wait_s"],
        threads=request["threads"],
    )
    _state.runs_on = request["runs_on"]
    _state.place = _state.session.place(_state.runs_on)
    _state.info = _state.session.info(request["cores"])
    _state.canary = _canary_of(_state.session)
    return {
        "device": _state.info.device,
        "threads": _state.info.threads,
        "cpu_model": _state.info.cpu_model,
        "temperature_c": _state.info.temperature_c,
        "simulated": _state.info.simulated,
        "canary_ratio": None if _state.canary is None else 1.0,
        "address": list(_state.session.address),
    }


def _close(_request: dict[str, Any]) -> dict[str, Any]:
    session, _state.session, _state.canary, _state.place = _state.session, None, None, None
    _state.networks.clear()
    if session is not None:
        session.close()
    return {}


def _program(request: dict[str, Any]) -> dict[str, Any]:
    session = _state.session
    library = session.load(Path(request["path"]))
    arguments = _random_arguments(session, request["arguments"])
    timing = (
        # flushed before each repeat, so its first call alone finds the caches without them
        {"repeat": _COLD_CALLS, "min_repeat_ms": 0, "f_preproc": "cache_flush_cpu_non_first_arg"}
        if request["cold"]
        else {"repeat": request["repeats"], "min_repeat_ms": request["min_repeat_ms"]}
    )
    evaluate = library.time_evaluator("main", _state.place, number=1, **timing)
    results = evaluate(*arguments).results
    return {"run_ms": [1000 * value for value in results], "measured_at": time.time()}


def _check(request: dict[str, Any]) -> dict[str, Any]:
    """Run two libraries of one signature on the same random inputs; compare the last argument."""
    import numpy as np

    session = _state.session
    generator = np.random.default_rng(request["seed"])
    host = _random_arrays(generator, request["arguments"])
    outputs = []
    for path in (request["reference"], request["path"]):
        library = session.load(Path(path))
        arguments = [_remote(array) for array in host]
        library["main"](*arguments)
        outputs.append(arguments[-1].numpy())
    reference, output = outputs
    differences = np.abs(reference - output)
    # Random inputs may be none of the task's, as where it takes the root of one.
    differences[np.isnan(reference) & np.isnan(output)] = 0.0
    return {
        "max_abs_error": float(np.max(differences)),
        "max_abs_output": float(np.max(np.abs(np.nan_to_num(reference)))),
    }


def _pair(request: dict[str, Any]) -> dict[str, Any]:
    """Time two networks in turn, so that drift of the device meets both alike."""
    for name in ("reference", "candidate"):  # how one lies in memory is part of an occasion
        _state.networks.pop(request[name], None)
    machines = [_network(request[name]) for name in ("reference", "candidate")]
    image = _random_image(request)
    evaluators = [
        machine.time_evaluator(
            "main", _state.place, number=1, repeat=1, min_repeat_ms=request["min_repeat_ms"]
        )
        for machine in machines
    ]
    for evaluate in evaluators:
        evaluate(image)
    reference_ms, candidate_ms = take_pairs(
        lambda which: 1000 * float(evaluators[which](image).mean),
        request["least"],
        request["most"],
        request["within_s"],
    )
    return {
        "reference_ms": reference_ms,
        "candidate_ms": candidate_ms,
        "measured_at": time.time(),
    }


def _attribute(request: dict[str, Any]) -> dict[str, Any]:
    """What each call of a network takes inside it; an empty answer where the device cannot tell.

    Plain TVM servers (those on phones) cannot: they lack our function. Nor can accelerators.
    """
    import json

    from tvm.runtime.vm import VirtualMachine

    session = _state.session
    attribute = session.function(ATTRIBUTE)
    if attribute is None or _state.runs_on != "cpu":  # an accelerator's calls return at once
        return {}
    machine = VirtualMachine(session.load(Path(request["path"])), _state.place)
    machine.set_input("main", _random_image(request))
    answer: dict[str, Any] = json.loads(attribute(machine.module))
    return answer


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a network on images; ``images`` is their raw bytes, one batch after the other."""
    import numpy as np

    machine = _network(request["path"])
    shape = request["input_shape"]
    images = np.frombuffer(request["images"], dtype="float32").reshape(-1, *shape)
    outputs = []
    for batch in images:
        machine.set_input("main", _remote(batch))
        machine.invoke_stateful("main")
        outputs.append(machine.get_outputs("main")[0].numpy())
    logits = np.concatenate(outputs)
    return {"logits": logits.astype("float32").tobytes(), "shape": list(logits.shape)}


def _network(path: str) -> Any:
    from tvm.runtime.vm import VirtualMachine

    if path not in _state.networks:
        library = _state.session.load(Path(path))
        _state.networks[path] = VirtualMachine(library, _state.place)
    return _state.networks[path]


def _random_arguments(session: Any, arguments: list[Any]) -> list[Any]:
    import numpy as np
    import tvm

    fill = session.function(_FILL)
    if fill is None:  # a server with TVM's bare runtime, as on phones
        arrays = _random_arrays(np.random.default_rng(0), arguments)
        return [_remote(array) for array in arrays]
    tensors = []
    for dtype, shape in arguments:
        tensor = tvm.runtime.empty(tuple(shape), dtype, _state.place)
        fill(tensor)
        tensors.append(tensor)
    return tensors


def _random_arrays(generator: Any, arguments: list[Any]) -> list[Any]:
    return [generator.standard_normal(shape).astype(dtype) for dtype, shape in arguments]


def _random_image(request: dict[str, Any]) -> Any:
    import numpy as np

    generator = np.random.default_rng(request["seed"])
    return _remote(generator.standard_normal(request["input_shape"]).astype("float32"))


def _remote(array: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(array, _state.place)


def _canary_of(session: Any) -> Any:
    """The session's canary; None on a plain TVM server, which has none."""
    from device_agents.health import Canary

    try:
        return Canary(session)
    except LookupError:
        return None


def _canary(_request: dict[str, Any]) -> dict[str, Any]:
    return {"ratio": _state.canary.ratio()}


if __name__ == "__main__":
    main()
