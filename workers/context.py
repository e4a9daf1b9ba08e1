"""What every worker process is told of the run it works for."""

from __future__ import annotations

import platform

from pydantic import Field

from schemas.base import Schema
from schemas.config import RunConfig


class RunContext(Schema):
    """The run's folders and its configuration."""

    run_dir: str = Field(description="Run folder, absolute.")
    artifacts: str = Field(description="Root of the artefact store: a folder or an fsspec address.")
    machine: str = Field(
        default_factory=platform.node, description="Name of the machine that the driver is on."
    )
    lock_dir: str = Field(description="Folder of lock files that this machine's processes share.")
    config: RunConfig
