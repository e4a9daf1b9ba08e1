"""A workload: one task with what is needed to schedule it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm.ir import IRModule, save_json

from schemas.table import Task
from workers.compiling.axes import ChannelAxes


@dataclass(frozen=True)
class Workload:
    """One task with its unscheduled module."""

    task: Task
    module: IRModule
    axes: ChannelAxes

    @cached_property
    def text(self) -> str:
        """The module as JSON text."""
        return str(save_json(self.module))
