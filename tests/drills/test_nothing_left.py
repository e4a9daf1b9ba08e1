"""A driver that is killed leaves no process behind, whatever its workers were at."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.reaper import MARK, marked

pytestmark = pytest.mark.drill

_GONE_LIMIT_S = 10.0
_DRIVER = """
import os, subprocess, sys
from pathlib import Path
from orchestrator.ray_workers import open_ray
from orchestrator.reaper import MARK
from schemas.config import RunConfig
from schemas.work import PrepareWork

config = RunConfig(prune={"max_accuracy_drop": 0.5})
ledger, workers = open_ray(config, Path(sys.argv[1]))
stray = subprocess.Popen(["sleep", "600"], start_new_session=True)
if sys.argv[2] == "working":
    workers.submit([PrepareWork()])
print(os.environ[MARK], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["working", "idle"])
def test_nothing_is_left_ten_seconds_after_a_kill(tmp_path: Path, moment: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    mark = driver.stdout.readline().strip()
    assert len(mark) == 32 and len(marked(mark)) >= 3, f"nothing inherited {MARK}"
    driver.kill()
    driver.wait(timeout=10)
    deadline = time.monotonic() + _GONE_LIMIT_S
    while left := marked(mark):
        assert time.monotonic() < deadline, [process.cmdline()[:3] for process in left]
        time.sleep(0.1)
