"""A TVM RPC server for one device. Run as ``python -m device_agents.device_server --help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def configure_threads(threads: int, cores: Sequence[int]) -> None:
    """Set this process's core mask and TVM's thread count. TVM must not have been imported.

    TVM pins thread number i to core number i whatever the mask says, so it may only do that where
    the mask is exactly the first cores. Elsewhere the mask alone holds the threads.
    """
    if cores:
        os.sched_setaffinity(0, set(cores))
    allowed = os.sched_getaffinity(0)
    os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ["TVM_BIND_THREADS"] = "1" if allowed == set(range(len(allowed))) else "0"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy must start no thread: the server forks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m device_agents.device_server", description=__doc__
    )
    parser.add_argument("--tracker-host", required=True, help="machine that the tracker is on")
    parser.add_argument("--tracker-port", required=True, type=int, help="where it listens")
    parser.add_argument("--key", required=True, help="what clients ask the tracker for")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="this device's address, as the machine of the run reaches it (no authentication)",
    )
    parser.add_argument(
        "--port", default=0, type=int, help="to listen on, for a firewall; without it a free one"
    )
    parser.add_argument("--threads", required=True, type=int, help="threads of TVM's runtime")
    parser.add_argument("--cores", default="", help="core mask, as 0,1,4; without it all cores")
    parser.add_argument(
        "--work-dir", required=True, type=Path, help="a folder of its own, for sessions' files"
    )
    parser.add_argument("--max-lease", default=3600, type=int, help="longest session in seconds")
    parser.add_argument("--runs-on", default="cpu", help="cpu or cuda: what programs run on")
    options = parser.parse_args()
    configure_threads(options.threads, [int(c) for c in options.cores.split(",") if c])

    from device_agents.lean_tvm import import_runtime

    import_runtime(options.runs_on)
    import tvm.rpc  # noqa: F401  # imported here once, and not in every session

    from device_agents.server_loop import DeviceServer, FolderInUse

    tracker = (options.tracker_host, options.tracker_port)
    try:
        server = DeviceServer(
            tracker,
            options.key,
            host=options.host,
            port=options.port,
            work_dir=options.work_dir,
            max_lease_s=options.max_lease,
        )
    except FolderInUse as error:
        parser.error(str(error))
    server.run()


if __name__ == "__main__":
    main()
