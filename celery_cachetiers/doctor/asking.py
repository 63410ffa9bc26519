"""Asking one Redis server: on one connection, with one deadline, and nothing is left behind on it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import redis

from celery_cachetiers.address import Address, address_of
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.client import FAULTS, RedisClient
from celery_cachetiers.clock import Clock
from celery_cachetiers.doctor.facts import Denial, Facts, ServerAnswers
from celery_cachetiers.doctor.rights import Need, needs_of_journal, needs_of_l2
from celery_cachetiers.doctor.subject import Subject
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.server_info import server_info
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.redis_reports import HISTORY

ROUND_TRIPS: Final = 5
SECONDS: Final = 5.0
"""How long one server is asked at most, whatever the timeout of a single answer."""
_REFUSED: Final = (redis.ResponseError, redis.exceptions.BusyLoadingError)


class Conversation:
    """One connection to one server; what the server refuses is an answer, everything else ends the conversation.

    Raises:
        TierUnavailable: It cannot be reached, or has become late.
    """

    def __init__(self, client: RedisClient, seconds: float = SECONDS) -> None:
        self._deadline = time.monotonic() + seconds
        self._connection = client.open()

    def ask(self, *command: str | int) -> Any:
        """The answer; an exception of redis-py's if the server refuses."""
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """The answers to several commands, sent in one packet."""
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            return [self._answer() for _ in commands]
        except FAULTS as error:
            raise TierUnavailable(str(error) or type(error).__name__) from error

    def _answer(self) -> Any:
        if time.monotonic() > self._deadline:
            raise TimeoutError("its answers take too long")
        try:
            return self._connection.read_response(disconnect_on_error=False)
        except _REFUSED as error:
            return error

    def close(self) -> None:
        """Ends it, and with it whatever was begun on it."""
        self._connection.disconnect()


def ask_servers(tiers: CacheTiers, subject: Subject, now: float) -> Facts:
    """What the servers of L2 and of the journal answer. Never raises for a server that does not."""
    facts = Facts(now)
    where, journal_where = tiers.where(), tiers.where_writes_wait() if subject.behind else None
    shared = journal_where == where
    if where is not None:
        needs = needs_of_l2(Layout(subject.settings.namespace), subject.settings.l1_tracking)
        if shared:
            needs += needs_of_journal(subject.settings.namespace, subject.behind, beside_entries=True)
        client = tiers.client_of(*where)
        l2 = ask_server(client, address_of(where[0]), needs, tiers.clock)
        reported = None if l2.away else last_report_at(client, Layout(subject.settings.namespace))
        facts = replace(facts, l2=l2, last_report=reported, journal=l2 if shared else None)
    if journal_where is not None and not shared:
        needs = needs_of_journal(subject.settings.namespace, subject.behind, beside_entries=False)
        journal = ask_server(tiers.client_of(*journal_where), address_of(journal_where[0]), needs, tiers.clock)
        facts = replace(facts, journal=journal)
    if facts.journal is not None and not facts.journal.away:
        facts = replace(facts, backlogs=_backlogs(tiers, subject))
    return facts


def ask_server(client: RedisClient, address: Address, needs: Sequence[Need], clock: Clock) -> ServerAnswers:
    """One server; what it does not answer is left out of the answers."""
    answers = ServerAnswers(address, user=address.user)
    try:
        talk = Conversation(client)
    except TierUnavailable as error:
        return replace(answers, away=str(error.__cause__ or error).rstrip("."))
    try:
        answers = _told(talk, answers)
        if answers.info is not None and answers.info.loading:
            return answers
        answers = _measured(talk, answers, clock)
        return replace(answers, user=_user(talk, answers.user), denied=tuple(_denied(talk, needs)))
    except TierUnavailable as error:
        if answers.round_trips:
            return replace(answers, rights_unknown=str(error))
        return replace(answers, away=str(error))
    finally:
        talk.close()
        client.close()


def _told(talk: Conversation, answers: ServerAnswers) -> ServerAnswers:
    told = talk.ask("INFO")
    if isinstance(told, Exception):
        return replace(answers, info_denied=isinstance(told, redis.exceptions.NoPermissionError))
    return replace(answers, info=server_info(str(told, "utf-8", "replace")))


def _measured(talk: Conversation, answers: ServerAnswers, clock: Clock) -> ServerAnswers:
    """Round trips, by a command that reads: a refusal takes as long. The clock is compared half way through one."""
    took = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        talk.ask("GET", "cachetiers:doctor")
        took.append(time.perf_counter() - began)
    before = clock.time()
    told = talk.ask("TIME")
    ahead = None if isinstance(told, Exception) else int(told[0]) + int(told[1]) / 1e6 - (before + clock.time()) / 2
    return replace(answers, round_trips=tuple(took), ahead=ahead)


def _user(talk: Conversation, otherwise: str) -> str:
    told = talk.ask("ACL", "WHOAMI")
    return otherwise if isinstance(told, Exception) else str(told, "utf-8", "replace")


def _denied(talk: Conversation, needs: Sequence[Need]) -> list[Denial]:
    """What of it is refused for want of a right; what is refused for another reason is allowed.

    Subscribing comes last, and to announcements at the very end: they would come in between the answers.
    """
    unique = os.urandom(8).hex()
    rows = [(need, step) for need in needs for step in need.steps]
    rows.sort(key=lambda row: row[1].subscribes)
    answers = talk.ask_all([step.packet(unique) for _, step in rows])
    found = [
        Denial(need.code, step.missing(str(answer)))
        for (need, step), answer in zip(rows, answers, strict=True)
        if _is_denial(answer)
    ]
    return list(dict.fromkeys(found))


def _is_denial(answer: Any) -> bool:
    """``EXEC`` has it within another error."""
    denied = isinstance(answer, redis.exceptions.NoPermissionError)
    return denied or (isinstance(answer, Exception) and "NOPERM" in str(answer))


def last_report_at(client: RedisClient, layout: Layout) -> float | None:
    """Epoch seconds of the newest entry in the history of hit-ratio reports; ``None`` without any, or if unknown."""
    try:
        newest = client.call(lambda _: ("XREVRANGE", layout.stats(HISTORY), "+", "-", "COUNT", 1), must_try=True)
        return int(newest[0][0].partition(b"-")[0]) / 1000 if newest else None
    except (TierUnavailable, ValueError, IndexError, AttributeError):
        return None
    finally:
        client.close()


def _backlogs(tiers: CacheTiers, subject: Subject) -> dict[str, Backlog]:
    found = {}
    for sink in subject.behind:
        try:
            found[sink] = tiers.writes.backlog(sink)
        except (TierUnavailable, ConfigurationError):  # a right is missing: that is among what is denied
            continue
    return found
