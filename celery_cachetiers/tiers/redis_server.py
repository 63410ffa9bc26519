"""Asking a Redis server about itself: never on the path of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_cachetiers.client import Command, RedisClient
from celery_cachetiers.server_info import ServerInfo, server_info


class RedisServerInfo:
    """The server behind a client.

    Concurrency: holds no state of its own; thread- and fork-safe as its client is.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def read(self) -> ServerInfo:
        """What the server tells of itself now.

        Raises:
            TierUnavailable: Not reached, or the user may not ask (``NOPERM``): `celery_cachetiers.client.was_answered`
                tells which.

        Costs: 1 round trip.
        """
        return server_info(str(self.ask("INFO"), "utf-8", "replace"))

    def ask(self, *command: str) -> Any:
        """The answer to one command, as bytes; for what an operator wants to know. Costs and errors as `read`."""
        return self._client.call(lambda _: command, must_try=True)

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to several, in 1 round trip; raises as `read` if any of them failed."""
        return self._client.pipeline([lambda _, command=command: command for command in commands], must_try=True)  # type: ignore[misc]

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""
        self._client.reset_after_fork()

    def close(self) -> None:
        """Closes connections that lie idle."""
        self._client.close()

    def __repr__(self) -> str:
        return "<RedisServerInfo>"
