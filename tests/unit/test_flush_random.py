"""Flushers that stop anywhere, beside writers and each other, in any order of events: no write is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from celery_cachetiers.delivery import CLAIM_SECONDS
from celery_cachetiers.errors import SinkRejected, SinkTimeout, SinkUnavailable, TierUnavailable
from celery_cachetiers.journal_port import Buried
from celery_cachetiers.testing.memory_journal import Dirty
from celery_cachetiers.writes import Write
from tests.unit.flushing import SINK, Stage

KEYS = "abcde"

Step = str | tuple[str, Any]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.just("go on"),
    st.just("go on"),
    st.tuples(st.just("write"), st.sampled_from(KEYS)),
    st.tuples(st.just("pass"), st.sampled_from([1.0, CLAIM_SECONDS / 2, CLAIM_SECONDS + 1])),
    st.just("flush"),
    st.sampled_from(["die", "interrupt", "away"]),
)
PLANS = st.lists(STEPS, max_size=12)
SINKS = st.lists(st.sampled_from(["take", "fail", "fail", "down", "hang", "reject", "late"]), max_size=6)
INVALIDATIONS = st.lists(st.booleans(), max_size=3)


class Died(BaseException):
    """The process was killed: nothing that it had still to do is done."""


class Process:
    """A flusher whose every step is followed by what a plan says; a journal and a sink as they are seen from it.

    Args:
        plan: What happens at its steps.
        sink: What becomes of the calls of its sink.
        invalidations: Which of them succeed.
        attempts: How often a record may fail.
    """

    def __init__(
        self, world: World, plan: list[Step], sink: list[str], invalidations: list[bool], attempts: int = 3
    ) -> None:
        self.world, self.plan, self.sink, self.invalidations = world, plan, sink, invalidations
        self.alive, self.token = True, ""
        self.batch_size, self.attempts, self.backoff, self.name = 3, attempts, 1.0, SINK

    def run(self, key: str = "") -> None:
        flusher = self.world.stage.another(self, sink=self, invalidate=self.invalidate)  # type: ignore[arg-type]
        try:
            if key:
                flusher.flush_key(key)
            else:
                flusher.flush(0.0)
        except (Died, KeyboardInterrupt, TierUnavailable):
            pass

    def __getattr__(self, method: str) -> Callable[..., Any]:
        act = getattr(self.world.stage.journal, method)

        def seen(*args: Any, **options: Any) -> Any:
            self.step()
            if method == "claim":
                self.token = args[1]
            answer = act(*args, **options)
            self.step()
            return answer

        return seen

    def write(self, writes: list[Write]) -> None:
        self.step()
        match self.sink.pop(0) if self.sink else "take":
            case "fail":
                raise ValueError
            case "down":
                raise SinkUnavailable
            case "hang":
                raise SinkTimeout(SINK, 1.0)
            case "reject":
                self.world.take(writes[1:], self.token)
                raise SinkRejected({writes[0].key: ValueError()})
            case "late":
                self.world.take(writes, self.token)
                raise SinkTimeout(SINK, 1.0)
        self.world.take(writes, self.token)
        self.step()

    def invalidate(self, tags: Sequence[str]) -> None:
        self.step()
        if self.invalidations and not self.invalidations.pop(0):
            raise TierUnavailable("away")
        self.world.invalidate(tags)
        self.step()

    def step(self) -> None:
        """Lets the next thing happen."""
        if not self.alive:
            raise Died
        step = self.plan.pop(0) if self.plan else "go on"
        match step:
            case ("write", key):
                self.world.write_key(str(key))
            case ("pass", seconds):
                self.world.stage.clock.advance(float(seconds))
            case "flush":
                Process(self.world, self.plan, self.sink, self.invalidations, self.attempts).run()
            case "die":
                self.alive = False
                raise Died
            case "interrupt":
                raise KeyboardInterrupt
            case "away":
                raise TierUnavailable("away")


class World(RuleBasedStateMachine):
    """Writers, flushers and the dead-letter of one sink."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.number = 0
        self.written: dict[str, tuple[int, str]] = {}
        self.delivered: dict[str, int] = {}
        self.invalidated: dict[str, int] = {}
        self.begun: list[tuple[str, int]] = []

    def write_key(self, key: str, begun: int = 0) -> None:
        self.number += 1
        body = f"{self.number}|{key}".encode()
        given = {"sequences": [begun]} if begun else {}
        [sequence] = self.stage.journal.write(SINK, [(key, body)], 1_000_000, **given)
        if sequence > self.written.get(key, (0, ""))[0]:
            self.written[key] = (sequence, str(self.number))

    def take(self, writes: Sequence[Write], token: str) -> None:
        dirty = self.dirty()
        for write in writes:
            if write.key in dirty and dirty[write.key].token == token:
                assert write.sequence >= self.delivered.get(write.key, 0), "an older value after a newer one"
            self.delivered[write.key] = max(write.sequence, self.delivered.get(write.key, 0))
        self.stage.sink.take(writes)

    def invalidate(self, tags: Sequence[str]) -> None:
        for tag in tags:
            self.invalidated[tag] = self.stage.sink.rows[tag][0]

    def dirty(self) -> dict[str, Dirty]:
        return self.stage.journal.shared.sinks[SINK].dirty

    def dead(self) -> dict[str, Buried]:
        return self.stage.journal.shared.sinks[SINK].dead

    @rule(key=st.sampled_from(KEYS))
    def write(self, key: str) -> None:
        self.write_key(key)

    @rule(key=st.sampled_from(KEYS))
    def begin(self, key: str) -> None:
        self.begun.append((key, self.stage.journal.begin(SINK, key)[1]))

    @rule(at=st.integers(0, 3))
    def write_what_was_computed(self, at: int) -> None:
        if at < len(self.begun):
            self.write_key(*self.begun.pop(at))

    @rule(seconds=st.sampled_from([0.5, 3.0, CLAIM_SECONDS + 1, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    @rule(plan=PLANS, sink=SINKS, invalidations=INVALIDATIONS, attempts=st.sampled_from([1, 3]))
    def flush(self, plan: list[Step], sink: list[str], invalidations: list[bool], attempts: int) -> None:
        Process(self, plan, sink, invalidations, attempts).run()

    @rule(key=st.sampled_from(KEYS), plan=PLANS, sink=SINKS)
    def flush_key(self, key: str, plan: list[Step], sink: list[str]) -> None:
        Process(self, plan, sink, []).run(key)

    @rule(key=st.sampled_from(KEYS))
    def exhume(self, key: str) -> None:
        self.stage.journal.exhume(SINK, [key])

    @invariant()
    def no_write_is_lost(self) -> None:
        for key, (sequence, value) in self.written.items():
            waits = key in self.dirty() and self.dirty()[key].record.sequence == sequence
            buried = key in self.dead() and self.dead()[key].record.sequence == sequence
            assert waits or buried or self.stage.sink.rows.get(key) == (sequence, value), key

    @invariant()
    def what_was_taken_and_let_go_was_invalidated_afterwards(self) -> None:
        for key, (sequence, _) in self.written.items():
            if key not in self.dirty() and key not in self.dead():
                assert self.invalidated.get(key, 0) >= sequence, key

    def teardown(self) -> None:
        """Whatever has happened: once all goes well, the sink has the last value of every key."""
        self.stage.journal.exhume(SINK, list(KEYS))
        for _ in range(5):
            self.stage.clock.advance(100.0)
            self.stage.another(invalidate=self.invalidate).flush(10.0)
        assert self.dirty() == {}
        assert self.stage.sink.rows == self.written


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
