"""cprune: decides what to prune, and keeps the record of it.

Importing this package starts nothing, and imports neither Ray nor TVM nor torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_pruned"]


def load_pruned(run_dir: str | os.PathLike[str], target: str | None = None) -> nn.Module:
    """The pruned network of a finished run, as a torch module in eval mode.

    Args:
        run_dir: the run folder, or a folder that ``cprune export`` wrote.
        target: which target's network; may be left out where there is only one.

    Raises:
        FileNotFoundError: when nothing has been exported there.
        ValueError: when ``target`` is not one of those there are, or is needed and missing.
    """
    exports = Path(run_dir) / "export"
    names = sorted(p.name for p in exports.iterdir() if p.is_dir()) if exports.is_dir() else []
    if not names:
        raise FileNotFoundError(
            f"{exports} holds no exported network; "
            f"'cprune status {run_dir}' says how far the run is"
        )
    if target is None:
        if len(names) > 1:
            raise ValueError(f"{exports} holds several targets, name one of them: {names}")
        target = names[0]
    elif target not in names:
        raise ValueError(f"{exports} holds no target {target!r}, only {names}")
    from workers.export.loading import load_pruned as load

    network: nn.Module = load(exports / target)
    return network
