"""A store that fails or stops where a test wants it to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from celery_cachetiers.entry import RawEntry, Times
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.inspected import Inspected
from celery_cachetiers.ports import LeaseAnswer, LeaseRequest, Leave, Put, ResultTags, Store

T = TypeVar("T")

METHODS: Final = (
    "read", "versions", "confirms", "lease", "commit", "commit_later", "release", "hand_over", "renew", "put",
    "put_all", "fence", "invalidate", "inspect",
)  # fmt: skip


class Gate:
    """Where a call stops until the test lets it go on: a rendezvous without a sleep.

    Args:
        name: For the error when nobody comes.
    """

    def __init__(self, name: str = "gate") -> None:
        self._name = name
        self._reached, self._opened = threading.Event(), threading.Event()

    def pass_through(self, timeout: float = 10.0) -> None:
        """Stops here until the gate is open. Raises `TimeoutError`, so that a broken test ends."""
        self._reached.set()
        if not self._opened.wait(timeout):
            raise TimeoutError(f"nobody opened {self!r} within {timeout} s")

    def wait_reached(self, timeout: float = 10.0) -> None:
        """Returns when somebody has come to the gate. Raises `TimeoutError`."""
        if not self._reached.wait(timeout):
            raise TimeoutError(f"nobody came to {self!r} within {timeout} s")

    def open(self) -> None:
        """Lets everybody pass, now and later."""
        self._opened.set()

    def __repr__(self) -> str:
        return f"<Gate {self._name}: {'open' if self._opened.is_set() else 'closed'}>"


class FaultyStore:
    """Hands every call on to another store, unless it is told to fail or to stop it.

    Concurrency: faults may be set and ended by any thread, also while calls are under way.

    Attributes:
        calls: How often each method was called, failed calls included.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._before: set[str] = set()
        self._after: set[str] = set()
        self._gates: dict[str, Gate] = {}
        self._given: list[Gate] = []
        self.calls: Counter[str] = Counter()

    def fail(self, *methods: str, after: bool = False) -> None:
        """These methods (all without a name) raise `TierUnavailable` until `heal`.

        Args:
            after: They act first: the answer is lost, not the request.
        """
        with self._lock:
            (self._after if after else self._before).update(_known(methods or METHODS))

    def hold(self, method: str) -> Gate:
        """The next call of the method stops at the gate before it acts; those after it pass."""
        [name] = _known([method])
        gate = Gate(name)
        with self._lock:
            self._gates[name] = gate
            self._given.append(gate)
        return gate

    def heal(self) -> None:
        """Ends every fault and opens every gate."""
        with self._lock:
            gates, self._given = self._given, []
            self._before.clear()
            self._after.clear()
            self._gates.clear()
        for gate in gates:
            gate.open()

    def read(self, digest: str, tags: tuple[str, ...], guess: tuple[str, ...] | None = None) -> RawEntry | None:
        """As the store's, or a fault."""
        return self._through("read", lambda: self._store.read(digest, tags, guess))

    def versions(self, tags: tuple[str, ...]) -> bytes | None:
        """As the store's, or a fault."""
        return self._through("versions", lambda: self._store.versions(tags))

    def confirms(self, digest: str, tags: tuple[str, ...], stamp: bytes, times: Times) -> bool:
        """As the store's, or a fault."""
        return self._through("confirms", lambda: self._store.confirms(digest, tags, stamp, times))

    def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """As the store's, or a fault."""
        return self._through("lease", lambda: self._store.lease(request))

    def commit(
        self,
        request: LeaseRequest,
        body: bytes,
        hard_ttl: float,
        *,
        announce: bool = False,
        result: ResultTags | None = None,
    ) -> int:
        """As the store's, or a fault."""
        act = partial(self._store.commit, request, body, hard_ttl, announce=announce, result=result)
        return self._through("commit", act)

    def commit_later(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, settled: Callable[[int | None], None]
    ) -> bool:
        """As the store's; a fault is an answer that is not known."""

        def act() -> bool:
            told = (lambda outcome: None) if "commit_later" in self._after else settled
            return self._store.commit_later(request, body, hard_ttl, told)

        try:
            return self._through("commit_later", act)
        except TierUnavailable:
            settled(None)
            return True

    def settle(self) -> None:
        """Always works."""
        self._store.settle()

    def release(self, digest: str, token: str, leave: Leave | None = None) -> bool:
        """As the store's, or a fault."""
        return self._through("release", lambda: self._store.release(digest, token, leave))

    def hand_over(self, digest: str, token: str, task_id: str, seconds: float) -> bool:
        """As the store's, or a fault."""
        return self._through("hand_over", lambda: self._store.hand_over(digest, token, task_id, seconds))

    def renew(self, request: LeaseRequest) -> bool:
        """As the store's, or a fault."""
        return self._through("renew", lambda: self._store.renew(request))

    def put(self, request: LeaseRequest, body: bytes, hard_ttl: float) -> None:
        """As the store's, or a fault."""
        self._through("put", lambda: self._store.put(request, body, hard_ttl))

    def put_all(self, puts: Sequence[Put], beside: object | None = None) -> None:
        """As the store's, or a fault."""
        self._through("put_all", lambda: self._store.put_all(puts, beside))

    def fence(self, *digests: str) -> None:
        """As the store's, or a fault."""
        self._through("fence", lambda: self._store.fence(*digests))

    def invalidate(self, tags: Sequence[str]) -> None:
        """As the store's, or a fault."""
        self._through("invalidate", lambda: self._store.invalidate(tags))

    def inspect(self, digest: str, tags: Sequence[str]) -> Inspected:
        """As the store's, or a fault."""
        return self._through("inspect", lambda: self._store.inspect(digest, tags))

    def reachable(self) -> bool:
        """Whether no method is to fail."""
        with self._lock:
            return not (self._before or self._after)

    def close(self) -> None:
        """Always works."""
        self._store.close()

    def reset_after_fork(self) -> None:
        """Always works."""
        self._lock = threading.Lock()
        self._store.reset_after_fork()

    def __repr__(self) -> str:
        return f"<FaultyStore: {sorted(self._before | self._after)} fail, of {self._store!r}>"

    def _through(self, method: str, act: Callable[[], T]) -> T:
        with self._lock:
            self.calls[method] += 1
            gate = self._gates.pop(method, None)
        if gate is not None:
            gate.pass_through()
        if method in self._before:
            raise TierUnavailable(f"{method} was told to fail")
        answer = act()
        if method in self._after:
            raise TierUnavailable(f"the answer of {method} was told to be lost")
        return answer


def _known(methods: Sequence[str]) -> Sequence[str]:
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"a store has no {', '.join(sorted(unknown))}; it has {', '.join(METHODS)}")
    return methods
