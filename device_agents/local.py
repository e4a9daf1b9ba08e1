"""The agent of a device on this machine: it starts, watches and restarts a device server."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from device_agents.children import Child, describe_exit, end_child, start_child
from device_agents.host_facts import allowed_cores, device_model, gpu_model, runs_on
from device_agents.server_loop import LISTENING_FILE, SESSION_FOLDERS
from device_agents.tracker_wire import TrackerUnreachable, tracker_summary
from schemas.target import TargetConfig

_POLL_S = 0.05
_BACKOFF_S = (0.0, 0.5, 2.0)
_LOG_TAIL_BYTES = 2000


class DeviceLost(RuntimeError):
    """The device's server could not be brought back after several attempts in a row."""


class LocalDevice:
    """A device server for one target, in a process of its own that cannot outlive this one.

    Several devices may share a key; each has its own server, folder and, if wanted, core mask.
    """

    def __init__(
        self,
        target: TargetConfig,
        tracker_host: str,
        tracker_port: int,
        *,
        work_dir: Path | None = None,
        start_timeout_s: float = 60.0,
        max_lease_s: int = 3600,
    ) -> None:
        """``start_timeout_s`` bounds each start of the server; ``max_lease_s`` cuts every session.

        Raises ``ValueError`` naming the field of ``targets[]`` that this machine cannot meet.
        """
        allowed = allowed_cores()
        if target.cores is not None and (not target.cores or not set(target.cores) <= allowed):
            raise ValueError(
                f"targets[{target.name}].cores is {target.cores}, but this process may use "
                f"{sorted(allowed)}: name one or more of these"
            )
        self.cores = frozenset(target.cores or allowed)
        self.threads = target.threads or len(self.cores)
        if self.threads > len(self.cores):
            raise ValueError(
                f"targets[{target.name}].threads is {self.threads}, but the device has "
                f"{len(self.cores)} cores: lower it, or use 0 for all of them"
            )
        self.key = target.key
        self.runs_on = runs_on(target.tvm_target)
        self.device_model = device_model(
            self.threads, None if self.runs_on == "cpu" else gpu_model() or self.runs_on
        )
        self.port: int | None = None
        self._mask = sorted(self.cores) if target.cores is not None else []
        self._tracker = (tracker_host, tracker_port)
        self._start_timeout_s, self._max_lease_s = start_timeout_s, max_lease_s
        self._own_dir = work_dir is None
        self._work_dir = work_dir or Path(tempfile.mkdtemp(prefix="cprune-device-"))
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._child: Child | None = None
        self._lock = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it does not run."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    @property
    def log_path(self) -> Path:
        """What the server printed."""
        return self._work_dir / "server.log"

    def start(self) -> LocalDevice:
        """Start the server and wait until the tracker lists it.

        Raises ``DeviceLost`` when three starts in a row fail, ``TrackerUnreachable`` when the
        server runs and the tracker does not answer.
        """
        self.ensure_alive()
        return self

    def ensure_alive(self) -> bool:
        """Start the server again if its process has ended or is frozen; whether that was needed.

        Three attempts, with growing pauses. Errors as for ``start``.
        """
        with self._lock:
            if self._runs():
                return False
            failures = []
            for pause_s in _BACKOFF_S:
                time.sleep(pause_s)
                try:
                    self._start_once()
                except _StartFailed as error:
                    failures.append(str(error))
                    self._end()
                else:
                    return True
            raise DeviceLost(
                f"the local device {self.key!r} did not start in {len(failures)} attempts: "
                f"{failures[-1]}; its log: {self._log_tail()}"
            )

    def restart(self) -> None:
        """Kill the server with its session and start it again. Errors as for ``start``."""
        with self._lock:
            self._end()
            self.ensure_alive()

    def stop(self) -> None:
        """End the server, its session and its files."""
        with self._lock:
            self._end()
            if self._own_dir:
                shutil.rmtree(self._work_dir, ignore_errors=True)

    def __enter__(self) -> LocalDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _runs(self) -> bool:
        pid = self.pid
        if pid is None:
            return False
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def _start_once(self) -> None:
        self._end()
        deadline = time.monotonic() + self._start_timeout_s
        self._work_dir.mkdir(parents=True, exist_ok=True)
        listening = self._work_dir / LISTENING_FILE
        listening.unlink(missing_ok=True)
        host, port = self._tracker
        command = [sys.executable, "-m", "device_agents.device_server"]
        command += ["--tracker-host", host, "--tracker-port", str(port), "--key", self.key]
        command += ["--threads", str(self.threads), "--work-dir", str(self._work_dir)]
        command += ["--runs-on", self.runs_on]
        command += [
            "--cores",
            ",".join(map(str, self._mask)),
            "--max-lease",
            str(self._max_lease_s),
        ]
        with self.log_path.open("wb") as log:
            child = self._child = start_child(command, log=log)
        while not listening.exists():
            self._check_start(child, deadline, "it does not listen")
        self.port = int(json.loads(listening.read_text())["port"])
        while True:
            try:
                if tracker_summary(host, port, timeout_s=2.0).lists(self.key, self.port):
                    return
            except TrackerUnreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_S)
                continue
            self._check_start(child, deadline, "the tracker does not list it")

    def _check_start(self, child: Child, deadline: float, what: str) -> None:
        """Pause shortly. Raises ``_StartFailed`` when the server ended or the time is over."""
        if child.poll() is not None:
            raise _StartFailed(f"its server ended by {describe_exit(child.returncode)}")
        if time.monotonic() >= deadline:
            raise _StartFailed(f"{what} after {self._start_timeout_s:g} s")
        time.sleep(_POLL_S)

    def _end(self) -> None:
        child, self._child, self.port = self._child, None, None
        if child is not None:
            end_child(child)
        for folder in self._work_dir.glob(f"{SESSION_FOLDERS}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _log_tail(self) -> str:
        text = ""
        with contextlib.suppress(OSError):
            text = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return re.sub(r"\s*\n\s*", " | ", text.strip()) or "empty"


class _StartFailed(RuntimeError):
    """One attempt to start the server failed."""
