"""What a sink's options may be; the checks, the error texts and the reference documentation come from here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from celery_cachetiers import options as rules
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.options import Rule


def _option(default: Any, rule: Rule, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"rule": rule, "doc": doc, "setting": None})


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkPolicy:
    """A sink's options, under the names that `sink` has for them."""

    batch_size: int = _option(500, rules.BATCH, "writes in one batch at most")
    max_delay: float | None = _option(
        None,
        rules.optional(rules.POSITIVE),
        "seconds a write waits at most; by default as long as a flush takes to come",
    )
    attempts: int = _option(8, rules.COUNT, "failures of one write after which it goes to the dead-letter")
    backoff: float = _option(
        1.0, rules.NOT_NEGATIVE, "seconds until the second attempt; they double with each one more"
    )
    time_limit: float = _option(30.0, rules.LEASE, "seconds one batch may take, opening the sink included")
    max_pending: int = _option(100_000, rules.COUNT, "writes that may wait in the journal")
    when_full: str = _option(
        "block",
        rules.choice("block", "through", "raise"),
        'what a write does that finds the journal full. ``"block"``: flushes, and waits until there is room, for '
        '``time_limit`` at most; ``"through"``: goes to the sink at once; '
        '``"raise"``: raises `JournalFull`',
    )
    durability: str | None = _option(
        None,
        rules.optional(rules.choice("replica", "disk")),
        'what a write waits for besides the server. ``"replica"``: a replica has it (WAIT); ``"disk"``: it is on disk '
        "(WAITAOF, Redis 7.2). Where that does not come in time, the sink gets the write at once, and again with the "
        "next flush",
    )

    @classmethod
    def resolve(cls, given: dict[str, object], where: str) -> SinkPolicy:
        """The options, each checked.

        Raises:
            ConfigurationError: Naming option, value and allowed range; a journal with no room for one full batch, if
                the size of a batch is said.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        checked: dict[str, Any] = {
            name: fields[name].metadata["rule"].check(name, value, where) for name, value in given.items()
        }
        policy = cls(**checked)
        if policy.max_pending < policy.batch_size != fields["batch_size"].default:
            allowed = f"at least batch_size={policy.batch_size}: there would never be a full batch"
            raise ConfigurationError("max_pending", policy.max_pending, allowed, where)
        return policy
