"""What every worker process is told of the run it works for."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Schema
from schemas.config import RunConfig


class RunContext(Schema):
    """The run's folders and its configuration."""

    run_dir: str = Field(description="Run folder, absolute.")
    artifacts: str = Field(description="Root of the artefact store: a folder or an fsspec address.")
    lock_dir: str = Field(description="Folder of lock files shared by the processes of a machine.")
    config: RunConfig
