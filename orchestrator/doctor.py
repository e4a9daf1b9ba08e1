"""Whether this machine can run cprune: each check says what it found, why it matters, and the cure.

Whatever might crash (TVM's bindings) or take long to import is probed in a process of its own, with
a time limit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warn", "fail"]

PROBE_TIMEOUT_S = 120.0
NEEDED_DISK_GB = 2.0
"""Free space below which a run is not started: artefacts, Ray's session files, build folders."""
NEEDED_MEMORY_GB = 5.0
"""Ray 0.4, two warm builders and a searcher 0.8 each, training and the driver 0.8 each."""
LONGEST_RAY_FOLDER = 107 - len(
    "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
)
"""A socket's path takes 107 bytes; Ray makes its own below the folder for temporary files."""
PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


@dataclass(frozen=True)
class Check:
    """One finding. ``cure`` is empty when nothing is wrong.

    ``wrong_input``: it is the configuration that has to be mended, not the machine.
    """

    name: str
    level: Level
    found: str
    cure: str = ""
    wrong_input: bool = False


def wrong(name: str, found: str, cure: str) -> Check:
    """What is wrong in the configuration."""
    return Check(name, "fail", found, cure, wrong_input=True)


def examine(folder: str | os.PathLike[str] = ".") -> Iterator[Check]:
    """All checks, in order; ``folder`` is where runs would be written."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_compiler,
        check_tvm,
        check_torch,
        check_ray,
        check_ray_token,
        check_ray_folder,
        lambda: check_disk(folder),
        check_memory,
        check_cuda,
        check_threads,
    ]
    for check in checks:
        yield check()


def check_python() -> Check:
    """Python 3.11 to 3.13."""
    version = sys.version_info
    found = f"{version.major}.{version.minor}.{version.micro} at {sys.prefix}"
    if (3, 11) <= version[:2] < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "make a virtual environment with Python 3.11 to 3.13")


def find_compiler() -> str | None:
    """The compiler TVM would link with: CXX, CC, or the first usual name on the path."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    names = [named] if named else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


def check_compiler() -> Check:
    """A compiler is there and links a shared library, as TVM has it do for every build."""
    cure = (
        "install a C/C++ compiler (Debian and Ubuntu: apt-get install build-essential; "
        "Fedora: dnf install gcc-c++), or name one in the variable CXX"
    )
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX") or os.environ.get("CC")
        found = f"{named} is not on the path" if named else "none: TVM links built networks with it"
        return Check("compiler", "fail", found, cure)
    with tempfile.TemporaryDirectory(prefix="cprune-doctor-") as folder:
        source = Path(folder, "probe.c")
        source.write_text("int probe(void) { return 0; }\n")
        command = [*compiler.split(), "-shared", "-fPIC", "-o", f"{folder}/probe.so", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check("compiler", "fail", f"{compiler} does not run ({error})", cure)
    if done.returncode != 0:
        first = (done.stderr.strip() or "no message").splitlines()[-1]
        return Check("compiler", "fail", f"{compiler} cannot link a library: {first}", cure)
    return Check("compiler", "ok", f"{compiler} links shared libraries")


_TVM_PROBE = """
import tvm
from tvm import te
a = te.placeholder((4,), name="a")
b = te.compute((4,), lambda i: a[i] + 1.0, name="b")
module = tvm.IRModule({"probe": te.create_prim_func([a, b])})
tvm.ir.load_json(tvm.ir.save_json(module))
"""


def check_tvm() -> Check:
    """apache-tvm and apache-tvm-ffi fit each other; a wrong pair crashes without a message."""
    versions = {name: installed_version(name) for name in PINS}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    cure = "pip install " + " ".join(f"{name}=={version}" for name, version in PINS.items())
    if None in versions.values():
        return Check("tvm", "fail", found, cure)
    code, output = probe(_TVM_PROBE)
    if code is None:
        return Check("tvm", "fail", f"{found}: no answer in {PROBE_TIMEOUT_S:.0f} s", cure)
    if code < 0:
        name = signal.Signals(-code).name
        what = "segmentation fault" if name == "SIGSEGV" else name
        return Check("tvm", "fail", f"{found}: {what} in tvm.ir.save_json; they do not fit", cure)
    if code != 0:
        return Check("tvm", "fail", f"{found}: {_last(output)}", cure)
    if versions != PINS:
        return Check("tvm", "warn", f"{found}: works, but is not the tested pair", cure)
    return Check("tvm", "ok", found)


def check_torch() -> Check:
    """torch and torchvision import together."""
    found = ", ".join(
        f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "torchvision")
    )
    cure = "pip install --force-reinstall torch torchvision, both from the same index"
    code, output = probe("import torch, torchvision; torchvision.ops.nms")
    if code is None:
        return Check("torch", "fail", f"{found}: no answer in {PROBE_TIMEOUT_S:.0f} s", cure)
    if code != 0:
        why = signal.Signals(-code).name if code < 0 else _last(output)
        return Check("torch", "fail", f"{found}: {why}", cure)
    return Check("torch", "ok", found)


def check_ray() -> Check:
    """Ray's version; and the cluster's, where one is named."""
    version = installed_version("ray")
    if version is None:
        return Check("ray", "fail", "missing", "pip install 'ray[default]>=2.60,<2.61'")
    where = os.environ.get("RAY_ADDRESS")
    found = f"ray {version}" + (f", cluster {where}" if where else ", started on this machine")
    if not version.startswith("2.60."):
        return Check("ray", "fail", found, "pip install 'ray[default]>=2.60,<2.61'")
    return Check("ray", "ok", found)


def check_ray_token() -> Check:
    """The token that Ray's processes know each other by is a private, readable file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check("ray token", "ok", "given by RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or os.path.expanduser("~/.ray/auth_token"))
    if not path.exists():
        holder = _nearest(path)
        if not _is_writable(holder):
            variable = "RAY_AUTH_TOKEN_PATH" if named else "HOME"
            return Check(
                "ray token",
                "fail",
                f"{path} (by {variable}) cannot be made: {holder} is not a writable folder",
                "set RAY_AUTH_TOKEN_PATH to a file in a folder you may write to",
            )
        return Check("ray token", "ok", f"none yet; Ray makes {path} when it first starts")
    if not os.access(path, os.R_OK) or not path.is_file():
        return Check("ray token", "fail", f"{path} cannot be read", f"chmod 600 {path}")
    if path.stat().st_mode & 0o077:
        return Check("ray token", "warn", f"{path} is open to other users", f"chmod 600 {path}")
    return Check("ray token", "ok", f"{path}")


def check_ray_folder() -> Check:
    """Ray's sockets fit into the folder that it takes for temporary files."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    folder = os.environ.get(variable) or "/tmp"
    found = f"{folder}{f' (by {variable})' if variable else ''}"
    cure = f"set {variable or 'TMPDIR'} to a short folder that you may write to, such as /tmp"
    if not folder.isascii():
        return Check("ray folder", "fail", f"{found} has other than ASCII letters", cure)
    if len(folder.rstrip("/")) > LONGEST_RAY_FOLDER:
        text = f"{found} is longer than {LONGEST_RAY_FOLDER} letters: Ray's sockets do not fit"
        return Check("ray folder", "fail", text, cure)
    holder = _nearest(Path(folder))
    if not _is_writable(holder):
        return Check("ray folder", "fail", f"{found}: {holder} is not a writable folder", cure)
    return Check("ray folder", "ok", found)


def _nearest(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    absolute = path.absolute()
    return next(place for place in (absolute, *absolute.parents) if os.path.lexists(place))


def _is_writable(folder: Path) -> bool:
    """Tried with a file without a name, since the rights alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def free_disk_gb(folder: str | os.PathLike[str]) -> tuple[float, Path]:
    """Free gigabytes where ``folder`` is or would be, and the folder that was looked at."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e9, path


def check_disk(folder: str | os.PathLike[str]) -> Check:
    """Room for the run folder, and for Ray's session files."""
    parts = []
    level: Level = "ok"
    for where in (Path(folder), Path(tempfile.gettempdir())):
        free, path = free_disk_gb(where)
        parts.append(f"{free:.1f} GB free in {path}")
        if free < NEEDED_DISK_GB:
            level = "fail"
    cure = f"free at least {NEEDED_DISK_GB:g} GB, or name another folder with --set output=FOLDER"
    return Check("disk", level, ", ".join(parts), "" if level == "ok" else cure)


def check_memory() -> Check:
    """Memory that is free now."""
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available / 1e9 >= NEEDED_MEMORY_GB:
        return Check("memory", "ok", found)
    cure = "end other programs, or set cluster.worker_cpus and fine_tune.max_parallel to 1"
    return Check("memory", "warn", f"{found}, about {NEEDED_MEMORY_GB:g} GB are used", cure)


def check_cuda() -> Check:
    """A GPU is welcome for training and not needed."""
    code, output = probe(
        "import json\n"
        "from torch import cuda\n"
        "print(json.dumps([cuda.get_device_name(i) for i in range(cuda.device_count())]))"
    )
    if code != 0:
        return Check("cuda", "warn", "torch could not be asked", "put torch right first")
    names = json.loads(_last(output))
    if names:
        return Check("cuda", "ok", ", ".join(names))
    if shutil.which("nvidia-smi"):
        cure = "bring the driver up to torch's CUDA version; training runs on the CPU until then"
        return Check("cuda", "warn", "a driver is there, but torch sees no GPU", cure)
    return Check("cuda", "ok", "no GPU: training runs on the CPU")


def check_threads() -> Check:
    """Cores, and variables that would change the device's thread count behind our back."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = len(cores) or os.cpu_count() or 1
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS", "TVM_BIND_THREADS")
    given = {name: os.environ[name] for name in names if name in os.environ}
    found = f"{count} cores" + "".join(f", {name}={value}" for name, value in given.items())
    if any(name.startswith("TVM_") for name in given):
        cure = "unset the TVM_ variables: targets[].threads and targets[].cores say how many"
        return Check("threads", "warn", found, cure)
    if count < 2:
        return Check("threads", "warn", found, "use at least 2 cores: one is kept by the device")
    return Check("threads", "ok", found)


def probe(code: str) -> tuple[int | None, str]:
    """Run Python ``code`` in a process of its own: exit status (None: too slow) and its output."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _last(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no message"
