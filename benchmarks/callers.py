"""The same calls, made by a thread or by an event loop: alone in a row for a time per call, or as a crowd at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from benchmarks.timing import timed


class Caller(Protocol):
    """A cached function and the way it is called."""

    def loop(self, numbers: Iterable[int]) -> float:
        """Calls it once per number, one after the other; seconds."""

    def crowd(self, numbers: Sequence[int], width: int) -> list[float]:
        """Calls it once per number, so many at a time; the monotonic instant at which each call returned."""

    def close(self) -> None:
        """Ends its connections."""


class Threads:
    """A function that blocks."""

    def __init__(self, function: Callable[[int], object], close: Callable[[], None] = lambda: None) -> None:
        self.function, self._close = function, close
        self.loop = timed(function)

    def crowd(self, numbers: Sequence[int], width: int) -> list[float]:
        with ThreadPoolExecutor(width) as pool:
            return list(pool.map(self._call, numbers))

    def _call(self, number: int) -> float:
        self.function(number)
        return time.monotonic()

    def close(self) -> None:
        self._close()


class Coroutines:
    """A coroutine function, on an event loop of its own in the calling thread: not charged for starting the loop."""

    def __init__(self, function: Callable[[int], Awaitable[object]], close: Callable[[], Awaitable[object]]) -> None:
        self._function, self._close, self._runner = function, close, asyncio.Runner()

    def loop(self, numbers: Iterable[int]) -> float:
        return self._runner.run(self._timed(numbers))

    async def _timed(self, numbers: Iterable[int]) -> float:
        function, began = self._function, time.perf_counter()
        for each in numbers:
            await function(each)
        return time.perf_counter() - began

    def crowd(self, numbers: Sequence[int], width: int) -> list[float]:
        return self._runner.run(self._crowd(numbers, width))

    async def _crowd(self, numbers: Sequence[int], width: int) -> list[float]:
        places = asyncio.Semaphore(width)

        async def call(number: int) -> float:
            async with places:
                await self._function(number)
                return time.monotonic()

        return list(await asyncio.gather(*map(call, numbers)))

    def close(self) -> None:
        self._runner.run(self._closed())
        self._runner.close()

    async def _closed(self) -> None:
        await self._close()
