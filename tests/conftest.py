"""Fixtures that several folders of tests share; makes the modules of this folder importable.

What needs TVM is imported where it is used: most tests do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tuning_world import Table

    from workers.tuning.worker import TuningWorker


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, share no records with the user's runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def table() -> Table:
    """The programs of the tuning ``worker``."""
    from tuning_world import Table

    return Table()


@pytest.fixture(scope="module")
def worker(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningWorker]:
    """A tuning worker on this machine's real local device, for the tests of one module."""
    import tuning_world

    started = tuning_world.worker(tmp_path_factory.mktemp("run"), table)
    yield started
    started.close()
