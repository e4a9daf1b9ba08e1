"""Linking libraries for a device whose processor or system is not this machine's: phones, boards.

TVM's own LLVM makes the objects of every processor; what is missing is a linker. For Android that
is the NDK's where ``TVM_NDK_CC`` names its compiler, as everywhere in TVM. Otherwise it is zig's,
from the package ``ziglang``. That has no Android libraries, and takes half a minute to build those
of other systems; nothing of them is needed but their names, so that the device's loader finds its
own: empty stand-ins have these.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Linker = Callable[..., None]
"""Called with the library's path and its objects, as ``export_library`` calls its ``fcompile``."""

_NDK = "TVM_NDK_CC"
_SYSTEM_LIBRARIES = {"android": ("libc.so", "libm.so"), "gnu": ("libc.so.6", "libm.so.6")}
_ZIG = (sys.executable, "-m", "ziglang", "cc")
_PAGE_BYTES = 16384  # of newer phones; libraries aligned so load on those of 4096 bytes too
_LINK_S = 120.0


class NoLinker(RuntimeError):
    """Libraries for this processor and system cannot be linked here; the text says what to do."""


def foreign_triple(target: Mapping[str, Any]) -> str | None:
    """The triple of a target's CPU, where that is not this machine's. ``target`` is as in a
    configuration: an accelerator's names its CPU as ``host``."""
    host = target.get("host")
    cpu = host if isinstance(host, Mapping) else target
    triple = str(cpu.get("mtriple", ""))
    here = platform.system() == "Linux" and triple.split("-")[0] == platform.machine()
    return None if not triple or (here and "android" not in triple) else triple


def check_linker(triple: str) -> None:
    """Raise ``NoLinker`` where libraries for the triple cannot be linked here."""
    if triple.startswith("arm64-"):
        raise NoLinker(f"LLVM does not take {triple} for what it is: write aarch64{triple[5:]}")
    if _is_for_ndk(triple):
        return
    _system_libraries(triple)
    if importlib.util.find_spec("ziglang") is None:
        ndk = f", or name the NDK's compiler in {_NDK}" if "android" in triple else ""
        raise NoLinker(
            f"libraries for {triple} need a linker, and the package ziglang is not installed: "
            f"pip install ziglang{ndk}"
        )


def linker_for(target: Mapping[str, Any]) -> Linker | None:
    """What links libraries for the target; None where this machine's own linker does.

    Raises ``NoLinker``.
    """
    triple = foreign_triple(target)
    if triple is None:
        return None
    check_linker(triple)
    if _is_for_ndk(triple):
        from tvm.support import ndk

        return ndk.create_shared  # type: ignore[no-any-return]
    zig_target, libraries = _zig_target(triple), _system_libraries(triple)

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="cprune-link-") as folder:
            stand_ins = [str(Path(folder) / name) for name in libraries]
            empty = Path(folder) / "empty.c"
            empty.write_text("")
            for path in stand_ins:
                name = f"-Wl,-soname,{Path(path).name}"
                _run([*_shared(zig_target, path), name, str(empty)])
            needed = ["-Wl,--no-as-needed", *stand_ins, f"-Wl,-z,max-page-size={_PAGE_BYTES}"]
            _run([*_shared(zig_target, output), *objects, *needed, *(options or ())])

    link.output_format = "so"  # type: ignore[attr-defined]  # asked for by export_library
    return link


def _shared(zig_target: str, output: str) -> list[str]:
    return [*_ZIG, "-target", zig_target, "-shared", "-fPIC", "-nostdlib", "-o", output]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LINK_S
    )
    if done.returncode != 0:
        raise RuntimeError(f"the linker failed: {done.stderr.strip()[-500:]}")


def _is_for_ndk(triple: str) -> bool:
    return "android" in triple and bool(os.environ.get(_NDK))


def _zig_target(triple: str) -> str:
    """The triple as zig has it: processor, system and environment."""
    processor, *_, environment = triple.split("-")
    return f"{'arm' if processor.startswith('arm') else processor}-linux-{environment}"


def _system_libraries(triple: str) -> tuple[str, ...]:
    """What the system's C and mathematics libraries are called on the device."""
    *before, environment = triple.split("-")
    for system, libraries in _SYSTEM_LIBRARIES.items():
        if "linux" in before[1:] and environment.startswith(system):
            return libraries
    raise NoLinker(
        f"there is no linker here for {triple}: it has to end with -linux-android or -linux-gnu, "
        "or with variants of these"
    )
