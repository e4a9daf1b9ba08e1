"""Builders on another machine of a cluster: a second Ray node on this one stands for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import concurrent.futures, json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tvm import te
from tvm.ir import save_json, IRModule
from tvm.runtime.module import load_module
from device_agents.host_cores import HostCores, lock_dir
from workers.compiling.builder import Builder, BuildJob
from workers.compiling.fan_out import FanOut
from workers.ray_builders import RayBuilders

folder = Path(sys.argv[1])
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20}
)
ray.init(address=cluster.address, log_to_driver=False)
other = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
cluster.wait_for_nodes()
target = {"kind": "llvm"}
distant = RayBuilders(target)
(builder,) = distant()
assert distant()[0] is builder, "one for each machine, kept"
local = Builder(target, 1, None, folder)
data = te.placeholder((8,), name="data")
double = te.compute((8,), lambda i: data[i] * 2.0, name="double")
module = IRModule({"main": te.create_prim_func([data, double])})
jobs = [BuildJob(str(save_json(module)), folder / f"{i}.so") for i in range(6)]
said = {"parallel": builder.parallel, "built": 0, "after_loss": 0}
asked = []
build = builder.build
builder.build = lambda jobs, limit_s: asked.append(len(jobs)) or build(jobs, limit_s)
build(jobs[:1], 30.0)  # from now on its process is warm: a build takes a fraction of a second
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with HostCores(lock_dir(), "host").measuring(60.0):
        waiting = pool.submit(build, jobs[:1], 30.0)
        said["beside_a_measurement"] = bool(concurrent.futures.wait([waiting], 5.0).done)
    (one,) = waiting.result(60.0)
    assert not one.error, one.error
fan_out = FanOut(local, 1, distant)
for name in ("built", "after_loss"):
    for library in fan_out.build(jobs, 30.0):
        assert not library.error, library.error
        load_module(str(library.path))["main"]
        said[name] += 1
        library.path.unlink()
    ray.kill(builder.actor)
said["asked"] = asked
print(json.dumps(said))
local.close()
distant.close()
ray.shutdown()
cluster.shutdown()
"""


def test_builds_are_shared_with_another_machine_and_come_back_when_it_is_lost(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    # The folder of locks lies in it: nobody else's measurements hold the builds up.
    with tempfile.TemporaryDirectory(prefix="cp-") as short:  # for Ray's sockets
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**environment, "TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert answer.returncode == 0, answer.stderr[-3000:]
    said = json.loads(answer.stdout.strip().splitlines()[-1])
    assert said == {
        "parallel": 2,
        "built": 6,
        "after_loss": 6,
        "asked": [4, 4],
        "beside_a_measurement": False,  # the machine may be the one that measures
    }
