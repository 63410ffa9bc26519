"""What every L2 promises: stamps, leases, fences, wake-ups, announcements."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from celery_cachetiers.entry import NONCE_BYTES, Header, RawEntry, Times, pack_body, tag_block, tag_names
from celery_cachetiers.ports import (
    NOT_HELD,
    OUT_OF_DATE,
    STORED,
    Found,
    Free,
    Held,
    Leading,
    LeaseRequest,
    Leave,
    Left,
    LogPosition,
    Put,
    ResultTags,
    Store,
)
from celery_cachetiers.tag_names import key_tag, namespace_tag, task_tag
from celery_cachetiers.testing.listener import RecordingListener

TAGS = (namespace_tag(), task_tag("conformance"), "user:1")
LEASE_TTL = 30.0
TTL = 60.0


@dataclass
class StoreUnderTest:
    """What a subclass' ``store`` fixture returns: two processes on the same L2, which tests may share.

    Attributes:
        ours, theirs: A store in each of the two processes.
        we_hear, they_hear: What the listeners of these processes hear; both are connected.
        now: Epoch seconds.
        advance: Lets so many seconds pass; by default it sleeps.
    """

    ours: Store
    theirs: Store
    we_hear: RecordingListener = field(default_factory=RecordingListener)
    they_hear: RecordingListener = field(default_factory=RecordingListener)
    now: Callable[[], float] = time.time
    advance: Callable[[float], None] = time.sleep

    def request(self, digest: str, tags: tuple[str, ...] = TAGS, **changes: Any) -> LeaseRequest:
        """A request with a token of its own."""
        request = LeaseRequest(
            digest=digest,
            tags=tags,
            token=f":{os.urandom(8).hex()}",
            lease_ttl=LEASE_TTL,
            keep_for=TTL + LEASE_TTL,
            now=self.now(),
        )
        return request._replace(**changes)

    def body(self, payload: bytes = b'"value"', tags: tuple[str, ...] = TAGS, *, fresh_for: float = TTL) -> bytes:
        """The body of an entry, computed now, that is stale after ``fresh_for`` and expired after `TTL`."""
        now = self.now()
        times = Times(now, now + fresh_for, now + max(TTL, fresh_for), 0.0)
        return pack_body(Header(times, len(tags), tag_block(tags), "application/json", "utf-8"), payload)

    def lead(self, digest: str, tags: tuple[str, ...] = TAGS, **changes: Any) -> LeaseRequest:
        """Takes the lease that nobody holds."""
        request = self.request(digest, tags, **changes)
        answer = self.ours.lease(request)
        assert isinstance(answer, Leading), answer
        return request

    def commit(self, request: LeaseRequest, payload: bytes = b'"value"', **how: Any) -> int:
        """Commits under a lease that was taken with `lead`."""
        return self.ours.commit(request, self.body(payload, request.tags, **how), TTL)

    def store(self, digest: str, payload: bytes = b'"value"', tags: tuple[str, ...] = TAGS, **how: Any) -> None:
        """Leads and commits."""
        assert self.commit(self.lead(digest, tags), payload, **how) == STORED

    def lead_with(self, digest: str, **changes: Any) -> tuple[LeaseRequest, LogPosition]:
        """Takes the lease for a task whose results give tags."""
        request = self.request(digest, guess=(), **changes)
        answer = self.ours.lease(request)
        assert isinstance(answer, Leading), answer
        assert answer.since is not None
        return request, answer.since

    def commit_with(self, request: LeaseRequest, names: tuple[str, ...], since: LogPosition, **how: Any) -> int:
        """Commits a value whose result gave these tags."""
        body = self.body(b'"value"', request.tags + names, **how)
        return self.ours.commit(request, body, TTL, result=ResultTags(names, since))

    def store_with(self, digest: str, names: tuple[str, ...], **how: Any) -> None:
        """Leads and commits a value whose result gave these tags."""
        request, since = self.lead_with(digest)
        assert self.commit_with(request, names, since, **how) == STORED


def digest() -> str:
    """A key that no other test uses."""
    return os.urandom(16).hex()


def payload_of(raw: RawEntry | None) -> bytes | None:
    """The payload, ``None`` for a miss."""
    return None if raw is None else raw.payload


class StoreConformance:
    """Subclass it with a fixture ``store`` that returns a `StoreUnderTest`.

    ```
    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self): ...
    ```
    """

    # -- reading ----------------------------------------------------------------------------------------------------

    def test_what_was_committed_is_read_in_every_process(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, b'"hello"')

        for side in (store.ours, store.theirs):
            raw = side.read(key, TAGS)
            assert payload_of(raw) == b'"hello"'
            assert raw is not None
            assert raw.header.tag_block == tag_block(TAGS)

    def test_an_unknown_key_is_a_miss(self, store: StoreUnderTest) -> None:
        assert store.ours.read(digest(), TAGS) is None

    def test_the_stamp_of_an_entry_is_that_of_its_lease_and_the_current_one(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.request(key)
        leading = store.ours.lease(request)
        store.commit(request)

        raw = store.theirs.read(key, TAGS)
        assert raw is not None
        assert isinstance(leading, Leading)
        assert raw.stamp == leading.stamp == store.ours.versions(TAGS)

    def test_versions_come_in_the_order_of_the_tags(self, store: StoreUnderTest) -> None:
        store.store(digest())

        forward, backward = store.ours.versions(TAGS), store.ours.versions(TAGS[::-1])
        assert forward is not None
        assert backward is not None
        assert backward == b"".join(_nonces(forward)[::-1])

    def test_there_are_no_versions_while_one_of_them_is_missing(self, store: StoreUnderTest) -> None:
        store.store(digest())

        assert store.ours.versions((*TAGS, f"never used:{digest()}")) is None

    def test_an_entry_is_confirmed_until_it_is_invalidated_replaced_or_removed(self, store: StoreUnderTest) -> None:
        ends: Iterable[Callable[[str], object]] = (
            *(lambda key, tag=tag: store.ours.invalidate([tag]) for tag in TAGS),
            store.ours.fence,
            lambda key: store.ours.put(store.request(key), store.body(), TTL),
            lambda key: store.ours.commit(store.lead(key, now=None), store.body(), TTL),
        )
        for end in ends:
            key = digest()
            store.store(key)
            raw = store.ours.read(key, TAGS)
            assert raw is not None
            times = raw.header.times
            assert store.theirs.confirms(key, TAGS, raw.stamp, times) is True
            assert store.theirs.confirms(digest(), TAGS, raw.stamp, times) is False
            assert store.theirs.confirms(key, TAGS[:2], raw.stamp, times) is False
            assert store.theirs.confirms(key, TAGS, bytes(len(raw.stamp)), times) is False
            store.advance(0.001)
            end(key)

            assert store.theirs.confirms(key, TAGS, raw.stamp, times) is False

    def test_an_entry_is_a_miss_after_its_hard_ttl(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.lead(key)
        store.ours.commit(request, store.body(), 0.1)
        store.advance(0.15)

        assert store.ours.read(key, TAGS) is None

    # -- tags -------------------------------------------------------------------------------------------------------

    def test_an_entry_is_a_miss_once_any_of_its_tags_was_invalidated(self, store: StoreUnderTest) -> None:
        for tag in TAGS:
            key = digest()
            store.store(key)
            store.theirs.invalidate([tag])

            assert store.ours.read(key, TAGS) is None, tag

    def test_invalidation_leaves_entries_under_other_tags_alone(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        store.theirs.invalidate([f"user:{digest()}"])

        assert payload_of(store.ours.read(key, TAGS)) == b'"value"'

    def test_a_tag_that_comes_back_never_revives_what_was_invalidated(self, store: StoreUnderTest) -> None:
        old, new = digest(), digest()
        store.store(old)
        before = store.ours.versions(TAGS)
        store.theirs.invalidate(["user:1"])
        store.store(new)

        assert store.ours.versions(TAGS) != before
        assert store.ours.read(old, TAGS) is None
        assert store.ours.read(new, TAGS) is not None

    def test_other_tag_names_never_validate(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        others = (TAGS[:2], TAGS[::-1], (*TAGS[:2], "user:2"), (*TAGS, "user:2"), ())
        for tags in others:
            store.store(digest(), tags=tags)

            assert store.ours.read(key, tags) is None, tags
            answer = store.ours.lease(store.request(key, tags))
            assert isinstance(answer, (Leading, Held)), tags
            assert answer.stale is None, tags
            store.ours.fence(key)
            store.store(key)

    def test_every_tag_has_a_nonce_of_its_own_and_a_new_one_after_each_invalidation(
        self, store: StoreUnderTest
    ) -> None:
        seen: list[bytes] = []
        for _ in range(3):
            store.store(digest())
            stamp = store.ours.versions(TAGS)
            assert stamp is not None
            seen += _nonces(stamp)
            store.ours.invalidate(TAGS)

        assert len(set(seen)) == 3 * len(TAGS)

    def test_nonces_do_not_come_from_the_token(self, store: StoreUnderTest) -> None:
        request, stamps = store.request(digest()), []
        for _ in range(2):
            answer = store.ours.lease(request)
            assert isinstance(answer, Leading)
            stamps.append(answer.stamp)
            store.ours.invalidate(TAGS)

        first, second = (_nonces(stamp) for stamp in stamps)
        assert not set(first) & set(second)

    def test_an_entry_without_tags_is_read(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, tags=())

        assert payload_of(store.theirs.read(key, ())) == b'"value"'

    def test_an_entry_outlives_neither_its_tags_nor_they_it_when_a_sibling_is_short_lived(
        self, store: StoreUnderTest
    ) -> None:
        long_lived, short_lived = digest(), digest()
        store.store(long_lived)
        request = store.lead(short_lived, lease_ttl=0.1, keep_for=0.1)
        store.ours.commit(request, store.body(), 0.1)
        store.ours.put(store.request(short_lived, keep_for=0.1), store.body(), 0.1)
        store.advance(0.15)

        assert store.ours.read(long_lived, TAGS) is not None

    # -- leases -----------------------------------------------------------------------------------------------------

    def test_the_first_who_asks_leads(self, store: StoreUnderTest) -> None:
        answer = store.ours.lease(store.request(digest()))

        assert isinstance(answer, Leading)
        assert len(answer.stamp) == NONCE_BYTES * len(TAGS)
        assert answer.stale is None

    def test_whoever_asks_while_another_leads_learns_by_whom_and_how_long_the_lease_is_held(
        self, store: StoreUnderTest
    ) -> None:
        key = digest()
        leader = store.lead(key)

        answer = store.theirs.lease(store.request(key))
        assert isinstance(answer, Held)
        assert answer.holder == leader.token
        assert 0 < answer.seconds_left <= LEASE_TTL
        assert answer.stale is None

    def test_whoever_asks_for_a_key_with_a_fresh_entry_is_answered_with_it(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, b"1")

        answer = store.theirs.lease(store.request(key))
        assert isinstance(answer, Found)
        assert answer.raw.payload == b"1"

    def test_the_answer_of_a_request_that_does_not_look_is_never_an_entry(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)

        answer = store.ours.lease(store.request(key, now=None))
        assert isinstance(answer, Leading)
        assert answer.stale is None

    def test_a_stale_entry_comes_with_the_lease_and_with_the_news_that_it_is_held(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, b"1", fresh_for=0.0)

        leading, held = store.ours.lease(store.request(key)), store.theirs.lease(store.request(key))
        assert isinstance(leading, Leading)
        assert isinstance(held, Held)
        assert payload_of(leading.stale) == payload_of(held.stale) == b"1"

    def test_an_entry_past_its_hard_ttl_by_the_callers_clock_is_not_offered(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)

        answer = store.ours.lease(store.request(key, now=store.now() + TTL + 1))
        assert isinstance(answer, Leading)
        assert answer.stale is None

    def test_a_rejected_entry_is_not_offered_again_but_any_other_is(self, store: StoreUnderTest) -> None:
        for fresh_for in (TTL, 0.0):
            key = digest()
            store.store(key, b"1", fresh_for=fresh_for)
            rejected = _bytes_of(store.ours.read(key, TAGS))

            answer = store.ours.lease(store.request(key, rejected=rejected))
            assert isinstance(answer, Leading)
            assert answer.stale is None
            other = store.theirs.lease(store.request(key, rejected=b"another"))
            assert isinstance(other, Found) or (isinstance(other, Held) and other.stale is not None)

    def test_the_same_token_may_ask_again_and_leads_under_the_same_stamp(self, store: StoreUnderTest) -> None:
        request = store.request(digest())

        first, second = store.ours.lease(request), store.ours.lease(request)
        assert isinstance(first, Leading)
        assert isinstance(second, Leading)
        assert first.stamp == second.stamp

    def test_a_lease_whose_stamp_is_outdated_is_taken_over(self, store: StoreUnderTest) -> None:
        key = digest()
        doomed = store.lead(key)
        store.theirs.invalidate(["user:1"])

        answer = store.theirs.lease(store.request(key))
        assert isinstance(answer, Leading)
        assert store.commit(doomed) == NOT_HELD

    def test_a_lease_that_ran_out_is_taken_by_the_next(self, store: StoreUnderTest) -> None:
        key = digest()
        dead = store.lead(key, lease_ttl=0.1)
        store.advance(0.15)

        assert isinstance(store.theirs.lease(store.request(key)), Leading)
        assert store.commit(dead) == NOT_HELD

    def test_a_leader_can_be_replaced_by_name(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)

        assert isinstance(store.theirs.lease(store.request(key, take_over="another")), Held)
        assert isinstance(store.theirs.lease(store.request(key, take_over=leader.token)), Leading)
        assert store.commit(leader) == NOT_HELD

    def test_of_two_who_replace_the_same_leader_one_leads(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        first, second = (store.request(key, take_over=leader.token) for _ in range(2))

        assert isinstance(store.ours.lease(first), Leading)
        held = store.theirs.lease(second)
        assert isinstance(held, Held)
        assert held.holder == first.token

    def test_any_leader_can_be_replaced_with_a_star(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)

        assert isinstance(store.theirs.lease(store.request(key, take_over="*", now=None)), Leading)
        assert store.commit(leader) == NOT_HELD

    # -- handed leases ----------------------------------------------------------------------------------------------

    def test_a_handed_lease_is_claimed_by_its_task_id_only(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead(key, hand_to="task-1", will_wait=False)

        for claim in ("", "task-2", "task"):
            held = store.theirs.lease(store.request(key, claim=claim))
            assert isinstance(held, Held), claim
            assert held.holder == "task-1"
        assert isinstance(store.theirs.lease(store.request(key, claim="task-1")), Leading)

    def test_a_handed_lease_is_claimed_even_if_the_entry_is_fresh(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        store.lead(key, hand_to="task-1", now=None, will_wait=False)

        assert isinstance(store.theirs.lease(store.request(key, claim="task-2")), Found)
        assert isinstance(store.theirs.lease(store.request(key, claim="task-1")), Leading)

    def test_a_claimed_lease_is_not_claimed_twice(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead(key, hand_to="task-1", will_wait=False)
        claimed = store.request(key, claim="task-1", token="task-1:a")

        assert isinstance(store.ours.lease(claimed), Leading)
        assert isinstance(store.theirs.lease(store.request(key, claim="task-1", token="task-1:b")), Held)
        assert store.commit(claimed) == STORED

    def test_a_lease_is_not_handed_over_while_another_computes_or_the_entry_is_fresh(
        self, store: StoreUnderTest
    ) -> None:
        busy, fresh = digest(), digest()
        store.lead(busy)
        store.store(fresh)

        assert isinstance(store.ours.lease(store.request(busy, hand_to="task-1", will_wait=False)), Held)
        assert isinstance(store.ours.lease(store.request(fresh, hand_to="task-1", will_wait=False)), Found)

    def test_a_leader_hands_its_lease_over_and_waiters_go_on_waiting(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key, token="task-1:a")
        store.theirs.lease(store.request(key))

        assert store.ours.hand_over(key, leader.token, "task-1", 5.0) is True
        held = store.theirs.lease(store.request(key, claim="task-2"))
        assert isinstance(held, Held)
        assert held.holder == "task-1"
        assert held.seconds_left <= 5.0
        claimed = store.request(key, claim="task-1", token="task-1:b")
        assert isinstance(store.ours.lease(claimed), Leading)
        store.commit(claimed)
        assert store.they_hear.wait_woken(key)

    def test_a_lease_is_handed_over_by_its_holder_only(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)

        assert store.theirs.hand_over(key, "another", "task-1", 5.0) is False
        assert store.commit(leader) == STORED

    def test_a_handed_lease_ends_when_the_retry_does_not_come(self, store: StoreUnderTest) -> None:
        key = digest()
        store.ours.hand_over(key, store.lead(key).token, "task-1", 0.2)
        store.advance(0.3)

        assert isinstance(store.theirs.lease(store.request(key)), Leading)

    # -- watching ---------------------------------------------------------------------------------------------------

    def test_whoever_watches_takes_no_lease(self, store: StoreUnderTest) -> None:
        key = digest()

        assert isinstance(store.theirs.lease(store.request(key, watch=True)), Free)
        assert isinstance(store.ours.lease(store.request(key)), Leading)

    def test_whoever_watches_learns_who_leads_and_is_woken(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        held = store.theirs.lease(store.request(key, watch=True))
        store.commit(leader)

        assert isinstance(held, Held)
        assert held.holder == leader.token
        assert store.they_hear.wait_woken(key)
        assert isinstance(store.theirs.lease(store.request(key, watch=True)), Found)

    # -- what a leader leaves ---------------------------------------------------------------------------------------

    def test_what_a_leader_leaves_is_for_those_who_waited_for_it(self, store: StoreUnderTest) -> None:
        for failed in (True, False):
            key = digest()
            leader = store.lead(key)
            store.ours.release(key, leader.token, Leave(store.body(b'"left"'), failed, LEASE_TTL))

            for watch in (True, False):
                left = store.theirs.lease(store.request(key, waits_for=leader.token, watch=watch))
                assert isinstance(left, Left)
                assert left.failed is failed
                assert left.raw.payload == b'"left"'

    def test_what_a_leader_left_is_not_for_newcomers_nor_for_those_who_waited_for_another(
        self, store: StoreUnderTest
    ) -> None:
        key = digest()
        leader = store.lead(key)
        store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))

        assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for="another")), Free)
        assert isinstance(store.theirs.lease(store.request(key)), Leading)

    def test_what_an_attempt_left_is_for_those_who_waited_for_its_task_id(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead(key, hand_to="task:1", will_wait=False)
        first = store.lead(key, claim="task:1", token="task:1:a")
        store.ours.hand_over(key, first.token, "task:1", 5.0)
        second = store.lead(key, claim="task:1", token="task:1:b")
        store.ours.release(key, second.token, Leave(store.body(), True, LEASE_TTL))

        for other in ("task:10", "task", "task:2:b", "task:1:a:b", ":b", "b"):
            assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=other)), Free)
        for waits_for in ("task:1", "task:1:a", "task:1:b"):
            assert isinstance(store.theirs.lease(store.request(key, waits_for=waits_for)), Left)

    def test_what_was_left_without_a_task_id_is_for_those_who_waited_for_that_attempt(
        self, store: StoreUnderTest
    ) -> None:
        key = digest()
        leader = store.lead(key, token=":a")
        store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))

        assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=":b")), Free)
        assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=":a")), Left)

    def test_what_an_attempt_left_is_not_for_those_who_wait_for_the_next_of_its_task_id(
        self, store: StoreUnderTest
    ) -> None:
        following: tuple[dict[str, Any], ...] = ({"token": "task-1:b"}, {"hand_to": "task-1"})
        for how in following:
            key = digest()
            first = store.lead(key, token="task-1:a")
            store.ours.release(key, first.token, Leave(store.body(), True, LEASE_TTL))
            store.lead(key, **how)

            for waits_for in ("task-1", "task-1:b"):
                assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=waits_for)), Held)

    def test_what_a_leader_left_is_nobodys_after_an_invalidation(self, store: StoreUnderTest) -> None:
        ways: Iterable[Callable[[str], object]] = (
            lambda key: store.theirs.invalidate(["user:1"]),
            store.theirs.fence,
            lambda key: store.theirs.put(store.request(key), store.body(), 0.2),
        )
        for way in ways:
            for comes_back in (False, True):
                key = digest()
                leader = store.lead(key)
                store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))
                way(key)
                store.advance(0.3)
                if comes_back:
                    store.lead(digest())  # the tag has a version again

                assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=leader.token)), Free)

    def test_a_leader_that_an_invalidation_overtook_leaves_nothing(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        store.theirs.invalidate(["user:1"])
        store.lead(digest())
        store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))

        assert isinstance(store.theirs.lease(store.request(key, watch=True, waits_for=leader.token)), Free)

    def test_what_a_leader_left_is_there_while_the_next_one_computes(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))
        store.lead(key)

        assert isinstance(store.theirs.lease(store.request(key, waits_for=leader.token)), Left)

    def test_a_fresh_entry_comes_before_what_a_leader_left(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        store.ours.release(key, leader.token, Leave(store.body(), True, LEASE_TTL))
        store.store(key)

        assert isinstance(store.theirs.lease(store.request(key, waits_for=leader.token)), Found)

    def test_whoever_does_not_hold_the_lease_leaves_nothing(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead(key)
        store.theirs.release(key, "another", Leave(store.body(), True, LEASE_TTL))

        assert isinstance(store.theirs.lease(store.request(key, waits_for="another")), Held)

    def test_what_a_leader_left_goes_with_its_time(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        store.ours.release(key, leader.token, Leave(store.body(), True, 0.2))
        store.advance(0.3)

        assert isinstance(store.theirs.lease(store.request(key, waits_for=leader.token)), Leading)

    # -- commit, release, renew -------------------------------------------------------------------------------------

    def test_a_commit_frees_the_lease(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)

        assert isinstance(store.theirs.lease(store.request(key, now=None)), Leading)

    def test_a_commit_that_nobody_waits_for_stores_and_frees_the_lease(self, store: StoreUnderTest) -> None:
        key, told = digest(), list[int | None]()
        store.store(key)  # a store may have to have seen a commit before
        leader = store.lead(key, now=None)
        assert store.ours.commit_later(leader, store.body(b'"later"'), TTL, told.append)
        store.ours.settle()
        store.ours.settle()

        assert told == [STORED]
        assert payload_of(store.theirs.read(key, TAGS)) == b'"later"'
        assert isinstance(store.theirs.lease(store.request(key, now=None)), Leading)

    def test_the_next_answer_brings_that_of_a_commit_that_nobody_has_waited_for(self, store: StoreUnderTest) -> None:
        told = list[int | None]()
        store.store(digest())  # a store may have to have seen a commit before
        first, second = store.lead(digest()), store.lead(digest())
        store.theirs.invalidate([TAGS[-1]])
        assert store.ours.commit_later(first, store.body(), TTL, told.append)
        store.ours.read(digest(), TAGS)
        assert told == [OUT_OF_DATE]
        assert store.ours.commit_later(second, store.body(), TTL, told.append)
        store.lead(digest())

        assert told == [OUT_OF_DATE, OUT_OF_DATE]

    def test_a_commit_without_the_lease_stores_nothing_and_frees_nothing(self, store: StoreUnderTest) -> None:
        key = digest()
        leader, stranger = store.lead(key), store.request(key)

        assert store.theirs.commit(stranger, store.body(), TTL) == NOT_HELD
        assert store.ours.read(key, TAGS) is None
        assert store.commit(leader) == STORED

    def test_a_commit_that_arrives_twice_is_refused_the_second_time_and_harms_nothing(
        self, store: StoreUnderTest
    ) -> None:
        key = digest()
        request = store.lead(key)

        assert [store.commit(request, b"1"), store.commit(request, b"2")] == [STORED, NOT_HELD]
        assert payload_of(store.ours.read(key, TAGS)) == b"1"

    def test_a_commit_after_an_invalidation_is_refused_and_frees_the_lease(self, store: StoreUnderTest) -> None:
        for tag in TAGS:
            key = digest()
            request = store.lead(key)
            store.theirs.invalidate([tag])

            assert store.commit(request) == OUT_OF_DATE
            assert store.ours.read(key, TAGS) is None
            assert store.ours.release(key, request.token) is False

    def test_a_commit_after_the_tag_came_back_is_refused_all_the_same(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.lead(key)
        store.theirs.invalidate(["user:1"])
        store.lead(digest())

        assert store.commit(request) == OUT_OF_DATE

    def test_a_refused_commit_wakes_the_waiters(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.lead(key)
        store.theirs.lease(store.request(key))
        store.ours.invalidate(["user:1"])
        store.commit(request)

        assert store.they_hear.wait_woken(key)

    def test_release_frees_the_lease_for_the_next(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)

        assert store.ours.release(key, leader.token) is True
        assert isinstance(store.theirs.lease(store.request(key)), Leading)

    def test_release_by_a_stranger_frees_nothing(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead(key)

        assert store.theirs.release(key, "stranger") is False
        assert store.theirs.release(digest(), "stranger") is False
        assert isinstance(store.theirs.lease(store.request(key)), Held)

    def test_renewal_prolongs_the_lease(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key, lease_ttl=0.4)
        for _ in range(3):
            store.advance(0.2)
            assert store.ours.renew(leader) is True

        assert isinstance(store.theirs.lease(store.request(key)), Held)
        assert store.commit(leader) == STORED

    def test_renewal_prolongs_the_versions_so_that_a_long_compute_can_be_stored(self, store: StoreUnderTest) -> None:
        key = digest()
        tags = (*TAGS[:2], f"user:{key}")
        leader = store.lead(key, tags, lease_ttl=0.4, keep_for=0.5)
        for _ in range(4):
            store.advance(0.2)
            assert store.ours.renew(leader) is True

        assert store.commit(leader) == STORED
        assert store.ours.read(key, tags) is not None

    def test_renewal_prolongs_the_waiting(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key, lease_ttl=0.4)
        store.theirs.lease(store.request(key, lease_ttl=0.4))
        for _ in range(5):
            store.advance(0.2)
            store.ours.renew(leader)
        store.commit(leader)

        assert store.they_hear.wait_woken(key)

    def test_renewal_refuses_who_does_not_hold_the_lease(self, store: StoreUnderTest) -> None:
        key = digest()
        late = store.lead(key, lease_ttl=0.1)
        store.advance(0.15)
        assert store.ours.renew(late) is False
        store.lead(key)

        assert store.ours.renew(late) is False
        assert store.theirs.renew(store.request(key)) is False

    # -- fences -----------------------------------------------------------------------------------------------------

    def test_put_replaces_the_entry(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, b"1")
        store.theirs.put(store.request(key), store.body(b"2"), TTL)

        assert payload_of(store.ours.read(key, TAGS)) == b"2"

    def test_put_works_where_nothing_was_and_after_an_invalidation(self, store: StoreUnderTest) -> None:
        key = digest()
        tags = (*TAGS[:2], f"user:{key}")
        for payload in (b"1", b"2"):
            store.ours.put(store.request(key, tags), store.body(payload, tags), TTL)
            assert payload_of(store.theirs.read(key, tags)) == payload
            store.ours.invalidate([tags[2]])

        assert store.theirs.read(key, tags) is None

    def test_put_refuses_a_leader_that_is_still_computing(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        store.theirs.put(store.request(key), store.body(b"2"), TTL)

        assert store.commit(leader, b"1") == NOT_HELD
        assert payload_of(store.ours.read(key, TAGS)) == b"2"

    def test_put_all_replaces_entries_and_refuses_their_leaders_like_put(self, store: StoreUnderTest) -> None:
        keys = [digest() for _ in range(3)]
        leader = store.lead(keys[1])
        store.theirs.put_all([Put(store.request(key), store.body(key.encode()), TTL) for key in keys])

        assert [payload_of(store.ours.read(key, TAGS)) for key in keys] == [key.encode() for key in keys]
        assert store.commit(leader) == NOT_HELD
        assert all(store.we_hear.wait_announced(key_tag(key)) for key in keys)

    def test_fence_removes_the_entry_and_refuses_a_leader_that_is_still_computing(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        leader = store.lead(key, now=None)
        store.theirs.fence(key)

        assert store.ours.read(key, TAGS) is None
        assert store.commit(leader) == NOT_HELD
        assert store.ours.read(key, TAGS) is None

    def test_several_keys_are_fenced_each_by_itself(self, store: StoreUnderTest) -> None:
        keys = [digest() for _ in range(3)]
        for key in keys:
            store.store(key)
        leader = store.lead(keys[1], now=None)
        other = digest()
        store.store(other)
        store.theirs.fence(*keys)
        store.theirs.fence()

        assert [store.ours.read(key, TAGS) for key in keys] == [None] * 3
        assert store.ours.read(other, TAGS) is not None
        assert store.commit(leader) == NOT_HELD
        assert all(store.we_hear.wait_announced(key_tag(key)) for key in keys)

    # -- messages ---------------------------------------------------------------------------------------------------

    def test_whoever_was_told_that_the_lease_is_held_is_woken_by_its_end(self, store: StoreUnderTest) -> None:
        ends: Iterable[Callable[[LeaseRequest], object]] = (
            store.commit,
            lambda request: store.ours.release(request.digest, request.token),
            lambda request: store.ours.put(store.request(request.digest), store.body(), TTL),
            lambda request: store.ours.fence(request.digest),
        )
        for end in ends:
            key = digest()
            leader = store.lead(key)
            assert isinstance(store.theirs.lease(store.request(key)), Held)
            end(leader)

            assert store.they_hear.wait_woken(key), end

    def test_all_waiting_processes_are_woken(self, store: StoreUnderTest) -> None:
        key = digest()
        leader = store.lead(key)
        for side in (store.ours, store.theirs):
            side.lease(store.request(key))
        store.commit(leader)

        assert store.we_hear.wait_woken(key)
        assert store.they_hear.wait_woken(key)

    def test_who_will_not_wait_is_not_woken(self, store: StoreUnderTest) -> None:
        key, last = digest(), digest()
        leader, marker = store.lead(key), store.lead(last)
        store.theirs.lease(store.request(key, will_wait=False))
        store.theirs.lease(store.request(last))
        store.commit(leader)
        store.commit(marker)

        assert store.they_hear.wait_woken(last)
        assert key not in store.they_hear.digests

    def test_an_invalidation_is_announced_to_the_others(self, store: StoreUnderTest) -> None:
        names, marker = [f"user:{digest()}", f"grün {digest()}"], digest()
        store.ours.invalidate(names)
        store.theirs.invalidate([marker])

        assert store.they_hear.wait_announced(names[1])
        assert set(names) <= set(store.they_hear.names)
        assert store.we_hear.wait_announced(marker)
        assert not set(names) & set(store.we_hear.names)

    def test_put_and_fence_are_announced_to_the_others_under_the_keys_name(self, store: StoreUnderTest) -> None:
        for act in (
            store.ours.fence,
            lambda key: store.ours.put(store.request(key), store.body(), TTL),
        ):
            key = digest()
            act(key)

            assert store.they_hear.wait_announced(key_tag(key))

    def test_a_commit_is_announced_only_when_asked_for_and_stored(self, store: StoreUnderTest) -> None:
        silent, told, refused, marker = digest(), digest(), digest(), digest()
        store.store(silent)
        store.ours.commit(store.lead(told), store.body(), TTL, announce=True)
        doomed = store.lead(refused)
        store.ours.invalidate(["user:1"])
        store.ours.commit(doomed, store.body(), TTL, announce=True)
        store.ours.invalidate([marker])

        assert store.they_hear.wait_announced(marker)
        assert key_tag(told) in store.they_hear.names
        assert not {key_tag(silent), key_tag(refused)} & set(store.they_hear.names)

    # -- tags that results give -------------------------------------------------------------------------------------

    def test_an_entry_with_result_tags_is_read_whatever_was_guessed(self, store: StoreUnderTest) -> None:
        for names in (("row:1",), ("row:1", "row:2", "grün")):
            key = digest()
            store.store_with(key, names)
            for guess in (names, (), ("row:2",), ("row:1", "row:2", "row:3"), names[::-1]):
                raw = store.theirs.read(key, TAGS, guess)
                assert raw is not None, guess
                assert tag_names(raw.header) == TAGS + names

    def test_a_task_without_result_tags_does_not_read_an_entry_that_has_some(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store_with(key, ("row:1",))

        assert store.theirs.read(key, TAGS) is None
        assert isinstance(store.theirs.lease(store.request(key)), Leading)

    def test_an_entry_without_result_tags_is_read_by_a_task_that_has_some(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)

        assert store.theirs.read(key, TAGS, ()) is not None
        assert store.theirs.read(key, TAGS, ("row:1",)) is not None
        assert isinstance(store.theirs.lease(store.request(key, guess=("row:1",))), Found)

    def test_an_entry_is_a_miss_once_any_tag_of_its_result_was_invalidated(self, store: StoreUnderTest) -> None:
        for tag in ("row:1", "row:2", *TAGS):
            key = digest()
            store.store_with(key, ("row:1", "row:2"))
            store.theirs.invalidate(["row:3"])
            assert store.ours.read(key, TAGS, ()) is not None
            store.theirs.invalidate([tag])

            assert store.ours.read(key, TAGS, ("row:1", "row:2")) is None
            assert store.ours.read(key, TAGS, ()) is None
            assert isinstance(store.ours.lease(store.request(key, guess=())), Leading)

    def test_a_result_tag_that_comes_back_never_revives_what_was_invalidated(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store_with(key, ("row:1",))
        store.theirs.invalidate(["row:1"])
        store.store_with(digest(), ("row:1",))

        assert store.ours.read(key, TAGS, ("row:1",)) is None

    def test_two_entries_share_the_version_of_a_result_tag(self, store: StoreUnderTest) -> None:
        keys = [digest(), digest()]
        for key in keys:
            store.store_with(key, ("row:shared",))
        raws = [store.theirs.read(key, TAGS, ()) for key in keys]
        assert None not in raws
        assert len({raw.stamp for raw in raws if raw is not None}) == 1
        store.ours.invalidate(["row:shared"])

        assert [store.theirs.read(key, TAGS, ()) for key in keys] == [None, None]

    def test_a_result_tag_that_was_invalidated_during_the_compute_refuses_the_commit(
        self, store: StoreUnderTest
    ) -> None:
        for names in (("row:1",), ("row:0", "row:1")):
            key = digest()
            request, since = store.lead_with(key)
            store.theirs.invalidate(["row:1"])
            store.lead(digest(), ("row:1",))  # the tag has a version again: that is not what tells

            assert store.commit_with(request, names, since) == OUT_OF_DATE
            assert store.ours.read(key, TAGS, names) is None
            assert isinstance(store.theirs.lease(store.request(key, guess=())), Leading)

    def test_an_invalidation_of_other_tags_or_before_the_lease_refuses_nothing(self, store: StoreUnderTest) -> None:
        key = digest()
        store.lead_with(digest())
        store.theirs.invalidate(["row:1"])
        request, since = store.lead_with(key)
        store.theirs.invalidate(["row:2"])

        assert store.commit_with(request, ("row:1",), since) == STORED
        assert store.theirs.read(key, TAGS, ()) is not None

    def test_an_argument_tag_that_was_invalidated_refuses_a_commit_with_result_tags(
        self, store: StoreUnderTest
    ) -> None:
        request, since = store.lead_with(digest())
        store.theirs.invalidate(["user:1"])

        assert store.commit_with(request, ("row:1",), since) == OUT_OF_DATE

    def test_another_epoch_of_the_log_refuses_the_commit(self, store: StoreUnderTest) -> None:
        request, since = store.lead_with(digest())

        assert store.commit_with(request, ("row:1",), replace(since, epoch=b"0" * 16)) == OUT_OF_DATE

    def test_a_fresh_entry_with_unknown_result_tags_answers_whoever_asks_for_the_lease(
        self, store: StoreUnderTest
    ) -> None:
        key = digest()
        store.store_with(key, ("row:1", "row:2"))
        for guess in ((), ("row:1",), ("row:3", "row:4"), ("row:1", "row:2")):
            answer = store.theirs.lease(store.request(key, guess=guess))
            assert isinstance(answer, Found), guess
            assert tag_names(answer.raw.header) == (*TAGS, "row:1", "row:2")

    def test_a_stale_entry_with_result_tags_comes_with_the_lease(self, store: StoreUnderTest) -> None:
        for guess in ((), ("row:1",)):
            key = digest()
            store.store_with(key, ("row:1",), fresh_for=0.0)
            answer = store.ours.lease(store.request(key, guess=guess))
            assert isinstance(answer, Leading)
            assert payload_of(answer.stale) == b'"value"'
            held = store.theirs.lease(store.request(key, guess=guess))
            assert isinstance(held, Held)
            assert payload_of(held.stale) == b'"value"'

    def test_the_lease_tells_which_invalidation_has_ended_the_entry_that_is_there(self, store: StoreUnderTest) -> None:
        key, sibling, unknown = digest(), digest(), digest()
        tags = (*TAGS[:2], f"first:{key}", f"second:{key}")
        for name in (key, sibling):
            store.store(name, tags=tags)
        store.theirs.invalidate([tags[3]])

        def ended_by(name: str, **changes: object) -> str:
            answer = store.ours.lease(store.request(name, tags, **changes))
            assert isinstance(answer, Leading)
            return answer.outdated

        assert ended_by(key) == tags[3]
        assert ended_by(sibling) == tags[3]  # whose tag has a new version by now
        assert ended_by(unknown) == ""
        store.theirs.invalidate(tags[2:])
        assert ended_by(key) == tags[2]
        assert ended_by(sibling, now=None) == ""

    def test_an_entry_that_is_stale_or_was_removed_was_not_ended_by_an_invalidation(
        self, store: StoreUnderTest
    ) -> None:
        stale, removed = digest(), digest()
        store.store(stale, fresh_for=0.0)
        store.store(removed)
        store.ours.fence(removed)

        for request in (store.request(stale), store.request(removed)):
            answer = store.ours.lease(request)
            assert isinstance(answer, Leading)
            assert answer.outdated == ""

    def test_who_claims_a_lease_that_was_handed_over_learns_it_too(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        store.ours.invalidate([TAGS[2]])
        store.lead(key, hand_to="task")

        answer = store.theirs.lease(store.request(key, token="task:1", claim="task"))
        assert isinstance(answer, Leading)
        assert answer.outdated == TAGS[2]

    def test_the_lease_tells_of_tags_of_the_result_too(self, store: StoreUnderTest) -> None:
        key, name = digest(), f"result:{digest()}"
        store.store_with(key, (name,))
        store.ours.invalidate([name])

        answer = store.theirs.lease(store.request(key, guess=(name,)))
        assert isinstance(answer, Leading)
        assert answer.outdated == name
        store.ours.invalidate([TAGS[2]])
        answer = store.theirs.lease(store.request(key, guess=()))
        assert isinstance(answer, Leading)
        assert answer.outdated == TAGS[2]

    def test_an_entry_with_result_tags_is_confirmed_until_one_of_them_is_invalidated(
        self, store: StoreUnderTest
    ) -> None:
        key, names = digest(), ("row:1", "row:2")
        store.store_with(key, names)
        raw = store.ours.read(key, TAGS, names)
        assert raw is not None
        assert store.theirs.confirms(key, TAGS + names, raw.stamp, raw.header.times) is True
        store.theirs.invalidate(["row:2"])

        assert store.theirs.confirms(key, TAGS + names, raw.stamp, raw.header.times) is False

    def test_what_is_left_by_a_task_with_result_tags_is_nobodys_after_any_invalidation(
        self, store: StoreUnderTest
    ) -> None:
        for invalidated in (False, True):
            key = digest()
            request, since = store.lead_with(key)
            if invalidated:
                store.theirs.invalidate(["row:1"])
            leave = Leave(store.body(b'"left"', (*TAGS, "row:1")), False, LEASE_TTL, since)
            store.ours.release(key, request.token, leave)
            answer = store.theirs.lease(store.request(key, guess=(), waits_for=request.token))

            assert isinstance(answer, Leading if invalidated else Left)
            if isinstance(answer, Left):
                assert answer.raw.payload == b'"left"'
                store.theirs.invalidate(["anything"])
                again = store.theirs.lease(store.request(key, guess=(), waits_for=request.token))
                assert isinstance(again, Leading)

    def test_renewal_prolongs_the_log_so_that_a_long_compute_can_be_stored(self, store: StoreUnderTest) -> None:
        key = digest()
        request, since = store.lead_with(key, lease_ttl=0.6, keep_for=0.6)
        for _ in range(3):
            store.advance(0.3)
            assert store.ours.renew(request) is True

        assert store.commit_with(request, ("row:1",), since) == STORED

    def test_put_stores_an_entry_with_result_tags(self, store: StoreUnderTest) -> None:
        key, tags = digest(), (*TAGS, "row:1")
        store.ours.put(store.request(key, tags, guess=()), store.body(b'"put"', tags), TTL)
        assert payload_of(store.theirs.read(key, TAGS, ())) == b'"put"'
        store.theirs.invalidate(["row:1"])

        assert store.ours.read(key, TAGS, ()) is None

    # -- looking at what there is -----------------------------------------------------------------------------------

    def test_where_nothing_is_nothing_is_seen(self, store: StoreUnderTest) -> None:
        tags = (f"never used:{digest()}",)
        seen = store.ours.inspect(digest(), tags)

        assert (seen.entry, seen.lease, dict(seen.versions), seen.outcome) == (None, None, {}, None)
        assert seen.nonces(tags) == (None,)

    def test_an_entry_is_seen_as_it_lies_there_with_the_versions_of_its_tags(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key, b'"hello"')
        seen = store.theirs.inspect(key, TAGS)

        assert seen.entry == _bytes_of(store.ours.read(key, TAGS))
        assert 0 < seen.entry_seconds_left <= TTL
        assert b"".join(nonce or b"" for nonce in seen.nonces(TAGS)) == store.ours.versions(TAGS)
        assert all(version.seconds_left > TTL for version in seen.versions.values())
        assert seen.lease is None

    def test_an_entry_is_seen_after_its_tag_was_invalidated_too(self, store: StoreUnderTest) -> None:
        key, tags = digest(), (*TAGS[:2], f"row:{digest()}")
        store.store(key, tags=tags)
        before = store.theirs.inspect(key, tags)
        store.ours.invalidate(tags[2:])
        after = store.theirs.inspect(key, tags)

        assert after.entry == before.entry
        assert set(after.versions) == set(tags[:2])

    def test_who_computes_is_seen_with_those_who_wait(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.lead(key)
        waiting = [store.theirs.inspect(key, TAGS).lease]
        store.theirs.lease(store.request(key))
        waiting.append(store.ours.inspect(key, TAGS).lease)

        for seen, inboxes in zip(waiting, (0, 1), strict=True):
            assert seen is not None
            assert (seen.token, seen.handed, seen.inboxes) == (request.token, False, inboxes)
            assert seen.stamp == store.ours.versions(TAGS)
            assert 0 < seen.seconds_left <= LEASE_TTL

    def test_for_whom_a_lease_is_kept_is_seen(self, store: StoreUnderTest) -> None:
        key = digest()
        request = store.lead(key)
        store.ours.hand_over(key, request.token, "retried", 5.0)
        seen = store.theirs.inspect(key, TAGS).lease

        assert seen is not None
        assert (seen.token, seen.handed) == ("retried", True)
        assert seen.stamp == store.ours.versions(TAGS)
        assert 0 < seen.seconds_left <= 5.0

    def test_what_a_leader_left_is_seen_and_not_read(self, store: StoreUnderTest) -> None:
        for failed in (True, False):
            key = digest()
            request = store.lead(key)
            store.ours.release(key, request.token, Leave(store.body(b'"left"'), failed, LEASE_TTL))
            seen = store.theirs.inspect(key, TAGS).outcome

            assert seen is not None
            assert (seen.failed, seen.token) == (failed, request.token)
            assert 0 < seen.seconds_left <= LEASE_TTL
            assert isinstance(store.theirs.lease(store.request(key, waits_for=request.token)), Left)

    def test_looking_changes_nothing(self, store: StoreUnderTest) -> None:
        stored, held, tags = digest(), digest(), (*TAGS[:2], f"row:{digest()}")
        store.store(stored, tags=tags)
        request = store.lead(held, tags)
        first = [store.ours.inspect(key, tags) for key in (stored, held)]
        store.advance(0.05)
        for _ in range(3):
            again = [store.theirs.inspect(key, tags) for key in (stored, held)]
        unused = f"never used:{digest()}"
        store.theirs.inspect(stored, (*tags, unused))

        for before, after in zip(first, again, strict=True):
            assert after.entry == before.entry
            assert after.entry_seconds_left <= before.entry_seconds_left
            assert after.nonces(tags) == before.nonces(tags)
            for tag in tags:
                assert after.versions[tag].seconds_left < before.versions[tag].seconds_left
        lease = again[1].lease
        assert lease is not None
        assert (lease.token, lease.inboxes) == (request.token, 0)
        assert store.ours.versions((unused,)) is None
        assert store.commit(request) == STORED

    # -- life -------------------------------------------------------------------------------------------------------

    def test_a_closed_store_can_be_used_again(self, store: StoreUnderTest) -> None:
        key = digest()
        store.store(key)
        store.ours.close()
        assert store.ours.read(key, TAGS) is not None
        store.ours.reset_after_fork()

        assert store.ours.read(key, TAGS) is not None


def _nonces(stamp: bytes) -> list[bytes]:
    return [stamp[at : at + NONCE_BYTES] for at in range(0, len(stamp), NONCE_BYTES)]


def _bytes_of(raw: RawEntry | None) -> bytes:
    assert raw is not None
    return pack_body(raw.header, raw.payload) + raw.stamp
