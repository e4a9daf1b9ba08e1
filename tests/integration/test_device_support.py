"""Helpers of the device tests, and, run as a module, their builder or client process."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from device_agents.children import end_child, start_child
from device_agents.lean_tvm import block_torch, import_runtime
from device_agents.processes import WarmProcess, serve

HERE = Path(__file__).parent


def builder() -> WarmProcess:
    """A process with the compiler: ``build(kind, path)``."""
    return WarmProcess(Path(__file__).stem, ["build"], env={"PYTHONPATH": str(HERE)})


def client() -> WarmProcess:
    """A process with the runtime alone: ``open``, ``run``, ``call``, ``close``."""
    return WarmProcess(Path(__file__).stem, ["client"], env={"PYTHONPATH": str(HERE)})


@contextmanager
def plain_server(tracker_port: int, key: str) -> Iterator[int]:
    """A device whose server is TVM's own, with its bare runtime and one thread; its port.

    Like a phone's ``tvm_rpc`` it has none of our functions, and none to fill tensors.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = (
        "from device_agents.lean_tvm import block_torch; block_torch(); import time; "
        "from tvm.rpc.server import PopenRPCServerState as S; "
        f"S('127.0.0.1', {port}, {port + 1}, tracker_addr=('127.0.0.1', {tracker_port}), "
        f"key={key!r}, silent=True); time.sleep(600)"
    )
    environment = {"TVM_NUM_THREADS": "1", "TVM_USE_RUNTIME_LIB": "1"}
    server = start_child([sys.executable, "-c", script], env=environment)
    try:
        yield port
    finally:
        end_child(server)


def build_all(folder: Path) -> dict[str, Path]:
    """The libraries the tests run, by kind."""
    paths = {kind: folder / f"{kind}.so" for kind in ("add", "crash", "slow")}
    with builder() as process:
        for kind, path in paths.items():
            process.call("build", {"kind": kind, "path": str(path)}, timeout_s=60)
        process.call("model", {"path": str(folder / "model.so")}, timeout_s=60)
    return {**paths, "model": folder / "model.so"}


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Poll ``condition`` until it holds; whether it did in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def gone(process: psutil.Process) -> bool:
    """Whether the process has ended (it may be a zombie)."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _build(request: dict[str, Any]) -> dict[str, Any]:
    import tvm
    from tvm import te

    def external(name: str, argument: int) -> Any:
        a = te.placeholder((1,), name="a")
        call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", name, argument))
        return te.create_prim_func([a, te.extern((1,), [a], lambda i, o: call, name="c")])

    def add() -> Any:
        a, b = (te.placeholder((1024,), name=name) for name in "ab")
        return te.create_prim_func([a, b, te.compute((1024,), lambda i: a[i] + b[i], name="c")])

    function = {
        "add": add,
        "crash": lambda: external("raise", 11),
        "slow": lambda: external("sleep", 60),
    }[request["kind"]]()
    library = tvm.compile(function.with_attr("global_symbol", "main"), target={"kind": "llvm"})
    library.export_library(request["path"])
    return {}


def _model(request: dict[str, Any]) -> dict[str, Any]:
    from tvm import relax

    block = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with block.function("main", [x]):
        with block.dataflow():
            y = block.emit_output(block.emit(relax.op.nn.relu(relax.op.add(x, x))))
        block.emit_func_output(y)
    target = tvm.target.Target({"kind": "llvm"})  # a dictionary fails for whole models
    tvm.compile(block.get(), target=target).export_library(request["path"])
    return {}


_state: dict[str, Any] = {}


def _open(request: dict[str, Any]) -> dict[str, Any]:
    from device_agents.session import open_session

    session = _state["session"] = open_session(**request)
    info = session.info()
    return {"device": info.device, "threads": info.threads, "cores": list(info.cores)}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import tvm

    session = _state["session"]
    module, device = session.load(Path(request["path"])), session.place("cpu")
    size = int(request["size"])
    a, b, c = (
        tvm.runtime.tensor(numpy.full(size, value, "float32"), device) for value in (1, 2, 0)
    )
    arguments = (a, b, c) if request.get("arguments", 2) == 3 else (a, c)
    timed = module.time_evaluator("main", device, number=2, repeat=3, min_repeat_ms=1)
    return {"run_s": list(timed(*arguments).results), "sum": float(c.numpy().sum())}


def _run_model(request: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import tvm
    from tvm.runtime.vm import VirtualMachine

    session = _state["session"]
    device = session.place("cpu")
    machine = VirtualMachine(session.load(Path(request["path"])), device)
    x = tvm.runtime.tensor(numpy.full((4, 8), 1.5, "float32"), device)
    total = float(machine["main"](x).numpy().sum())
    timed = machine.time_evaluator("main", device, number=2, repeat=3)(x)
    return {"sum": total, "run_s": list(timed.results)}


def _random_fill(_: dict[str, Any]) -> dict[str, Any]:
    import numpy
    import tvm

    session = _state["session"]
    x = tvm.runtime.tensor(numpy.zeros(1000, "float32"), session.place("cpu"))
    session.rpc.get_function("tvm.contrib.random.random_fill_for_measure")(x)
    return {"distinct": len(set(x.numpy().tolist()))}


def _canary(_: dict[str, Any]) -> dict[str, Any]:
    from device_agents.health import Canary

    canary = Canary(_state["session"])
    return {"first_ms": canary.first_ms, "ratio": canary.ratio()}


def _close(_: dict[str, Any]) -> dict[str, Any]:
    _state.pop("session").close()
    return {
        "rss": psutil.Process().memory_info().rss,
        "torch": sys.modules.get("torch") is not None,
    }


if __name__ == "__main__":
    if sys.argv[1] == "build":
        block_torch()
        import tvm

        serve({"build": _build, "model": _model})
    else:
        import_runtime()
        serve(
            {
                "open": _open,
                "run": _run,
                "run_model": _run_model,
                "random_fill": _random_fill,
                "canary": _canary,
                "close": _close,
            }
        )
