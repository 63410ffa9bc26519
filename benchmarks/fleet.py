"""Processes that each build the same contender and then act on the same orders: one callable, made in the process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

TIMEOUT = 60.0
_spawn = multiprocessing.get_context("spawn")


def shared_counter() -> Any:
    """A number that all processes of a fleet can raise, under its lock."""
    return _spawn.Value("q", 0)


class Fleet:
    """So many processes.

    Args:
        make: Importable; called with the arguments in each process, returns what handles an order.
    """

    def __init__(self, size: int, make: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        pipes = [_spawn.Pipe() for _ in range(size)]
        self._ends = [mine for mine, _ in pipes]
        self._processes = [
            _spawn.Process(target=_serve, args=(theirs, make, arguments), daemon=True) for _, theirs in pipes
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        self.replies()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.order(None)
        for process in self._processes:
            process.join(5)
            process.kill()

    def order(self, order: Any) -> None:
        """Sends it to all; returns at once."""
        for end in self._ends:
            end.send(order)

    def replies(self) -> list[Any]:
        """One reply of each, in any order of arrival."""
        answers = []
        for end in self._ends:
            if not end.poll(TIMEOUT):
                raise RuntimeError("a process of the fleet does not answer")
            answers.append(end.recv())
        return answers


def _serve(end: Connection, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    handle = make(*arguments)
    end.send("ready")
    while (order := end.recv()) is not None:
        end.send(handle(order))
