"""What the launcher uses of the package ``dask-yarn``, without a Hadoop cluster: it notes what is asked of it.

The application's id stands for the YARN container that ``from_current`` connects to; outside of one it fails.
"""

from __future__ import annotations

import os
from pathlib import Path


class YarnCluster:
    """A cluster of Dask workers, as far as a kernel in one of its containers is concerned."""

    def __init__(self, app_id: str) -> None:
        self.app_id = app_id
        self._note("connected")

    @classmethod
    def from_current(cls) -> YarnCluster:
        """Connect to the cluster that this process is part of."""
        app_id = os.environ.get("SKEIN_APPLICATION_ID")
        if app_id is None:
            raise ValueError("Not running inside a container")
        return cls(app_id)

    def close(self) -> None:
        """Let go of the cluster."""
        self._note("closed")

    def _note(self, word: str) -> None:
        with Path(os.environ["DASK_NOTES"]).open("a") as notes:
            notes.write(f"{word} {self.app_id} in {os.getpid()}\n")
