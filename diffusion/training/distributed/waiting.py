"""Lets the main process work alone, on a grid of samples, while the others wait without a collective operation.

A process within a collective is deaf: Python runs the handler of a signal when the call has returned, and the main
process may draw for minutes. So the others ask, a few times a second, the store that the processes met by (a table of
keys and values); meanwhile they hear their signals, and leave a word there, which the main process finds at the next
evaluation of its network. A collective's own time-out (10 minutes with NCCL) does not count there either.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from .shards import group_is_up

_PERIOD = 0.05  # seconds
_runs = itertools.count()


class Waiting:
    """The signalling of one training run; each process makes one instance.

    Args:
        requested: Whether this process has received a request to stop.
    """

    def __init__(self, requested: Callable[[], bool]) -> None:
        self.requested = requested
        self._number = next(_runs)  # several runs of one process must not read each other's words

    def is_over(self) -> bool:
        """Whether this process, or one that waits for it, has received a request to stop."""
        return self.requested() or (group_is_up() and _store().check([self._key("stop")]))

    @contextmanager
    def main_alone(self, name: str, is_main: bool) -> Iterator[bool]:
        """Open a block that the main process alone goes through; the value says whether it does.

        The others wait here until it has left the block, or they have to stop themselves.

        Args:
            name: The block's own name in this run.
            is_main: Whether this is the main process.
        """
        if is_main:
            try:
                yield True
            finally:
                self._say(name)
            return
        while not _store().check([self._key(name)]):
            if self.requested():
                self._say("stop")
                break
            time.sleep(_PERIOD)
        yield False

    def _say(self, name: str) -> None:
        if group_is_up():
            _store().set(self._key(name), "1")

    def _key(self, name: str) -> str:
        return f"diffusion/{self._number}/{name}"


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
