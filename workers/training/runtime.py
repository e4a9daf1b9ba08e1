"""Where and with how many threads torch computes, put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def best_device() -> str:
    """``cuda`` where torch sees a GPU, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def computing(model: nn.Module, threads: int, device: str | None) -> Iterator[torch.device]:
    """The model on ``device`` (the best by default), torch with ``threads`` threads, inside.

    Operations are the deterministic ones where torch has them; memory that they write anyway is not
    filled before, which only takes time. The model is moved in place and put back,
    as are threads and torch's modes.
    """
    home = next(model.parameters()).device
    chosen = torch.device(device or best_device())
    before = torch.get_num_threads()
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model.to(chosen)
        yield chosen
    finally:
        model.to(home)
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.set_num_threads(before)
