"""TVM's RPC tracker in a process of its own, on a port the kernel chooses."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from device_agents.lean_tvm import import_runtime
from device_agents.processes import WarmProcess, serve
from device_agents.tracker_wire import TrackerSummary, tracker_summary

__all__ = ["TrackerProcess", "TrackerSummary", "tracker_summary"]

_READY_S = 10.0


class TrackerProcess:
    """A running tracker. It listens without any authentication: keep it on loopback."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        start_timeout_s: float = 60.0,
        log_path: Path | None = None,
    ) -> None:
        """Start the tracker and wait until it answers.

        ``port`` 0 lets the kernel choose. Raises ``device_agents.processes.ProcessError`` when its
        process does not start in ``start_timeout_s`` seconds, ``RemoteFailure`` (kind ``OSError``)
        when the port is taken.
        """
        self.host = host
        self._process = WarmProcess(
            "device_agents.tracker",
            name="RPC tracker",
            env={"OPENBLAS_NUM_THREADS": "1"},
            start_timeout_s=start_timeout_s,
            log_path=log_path,
        )
        self.port = self._listen(port)

    @property
    def pid(self) -> int | None:
        """Process id; None when the tracker has ended."""
        return self._process.pid

    def alive(self, timeout_s: float = 2.0) -> bool:
        """Whether the tracker's process runs and answers within ``timeout_s`` seconds."""
        try:
            tracker_summary(self.host, self.port, timeout_s)
        except ConnectionError:
            return False
        return self.pid is not None

    def ensure_alive(self) -> bool:
        """Start the tracker again, on the same port, if it does not answer; whether it was needed.

        Devices register again by themselves. Errors as for the constructor.
        """
        if self.alive():
            return False
        self._process.stop()
        self._listen(self.port)
        return True

    def stop(self) -> None:
        """End the tracker. Devices keep trying to register again until one listens there."""
        self._process.stop()

    def __enter__(self) -> TrackerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listen(self, port: int) -> int:
        query = {"host": self.host, "port": port}
        try:
            bound = int(self._process.call("listen", query, timeout_s=_READY_S)["port"])
            tracker_summary(self.host, bound, _READY_S)
        except BaseException:
            self._process.stop()
            raise
        return bound


def _listen(request: dict[str, Any]) -> dict[str, Any]:
    from tvm.rpc.tracker import TrackerServerHandler

    sock = socket.create_server((request["host"], request["port"]), backlog=256)
    # The tracker writes a frame in two parts; accepted sockets inherit this, and save 40 ms each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        TrackerServerHandler(sock, stop_key=secrets.token_hex()).run()

    threading.Thread(target=run, name="tracker", daemon=True).start()
    return {"port": sock.getsockname()[1]}


if __name__ == "__main__":
    import_runtime()
    serve({"listen": _listen})
