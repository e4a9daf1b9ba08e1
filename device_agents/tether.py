"""Tie a process to its parent: when the parent dies, the kernel kills it.

Run as a file, this is a shim that ties itself and then becomes the wanted command, so that there is
no moment (slow imports included) at which the command could outlive its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread of ``parent_pid`` that started it ends.

    Ends the process at once when the parent is gone already. The tie survives ``exec`` but not
    ``fork``: a child of this process has to tie itself again.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def main() -> None:
    """``tether.py PARENT_PID COMMAND [ARGUMENT ...]``: tie, then become the command."""
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
