"""The seat that a request is given on its way to the pool: it survives pickling, and no message can bring one along."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Ignore
from kombu.utils.json import dumps, loads

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.entry import MISSING
from celery_cachetiers.seat import Answer, GivenBack, Seat, give_seat, seat_of
from tests.unit.bodies import never

SEAT = Seat("nonce", take_over="a:1", waits_for="b:2", holds=False, digest="0" * 32, tags=("@all", "user:1"))


class SeatOfAnother(NamedTuple):
    nonce: str
    take_over: str = ""
    waits_for: str = ""
    holds: bool = True
    digest: str = ""
    tags: tuple[str, ...] = ()


def worker_request(properties: dict[str, Any] | None) -> SimpleNamespace:
    """As much of a worker's request as a seat is put into."""
    return SimpleNamespace(request_dict={"id": "1", "properties": properties})


def test_a_seat_survives_the_way_to_a_child() -> None:
    request = worker_request({"priority": 3})
    give_seat(request, SEAT)
    in_the_child = Context(pickle.loads(pickle.dumps(request.request_dict)))

    assert seat_of(in_the_child) == SEAT
    assert type(seat_of(in_the_child)) is Seat


def test_what_a_child_gives_back_survives_the_way_to_the_main_process() -> None:
    given = pickle.loads(pickle.dumps(GivenBack("a:1", 4.5)))

    assert isinstance(given, GivenBack)
    assert isinstance(given, Ignore)  # to Celery
    assert (given.holder, given.seconds_left) == ("a:1", 4.5)


@pytest.mark.parametrize("given", [SEAT, Answer(copy=lambda: 1)], ids=["seat", "answer"])
@pytest.mark.parametrize("properties", [None, {}, {"priority": 3}], ids=str)
def test_what_was_given_is_found_beside_the_messages_own_properties(
    properties: dict[str, Any] | None, given: Seat | Answer
) -> None:
    request = worker_request(properties)
    before = dict(properties or {})
    give_seat(request, given)

    assert seat_of(Context(request.request_dict)) == given
    assert request.request_dict["properties"].items() >= before.items()
    assert (properties or {}) == before  # the message's own are not touched


def test_the_seat_that_was_given_last_counts() -> None:
    request = worker_request(None)
    give_seat(request, SEAT)
    give_seat(request, Seat("another"))

    assert seat_of(Context(request.request_dict)) == Seat("another")


@pytest.mark.parametrize(
    "request_",
    [None, SimpleNamespace(), Context(), Context({"properties": None}), Context({"properties": {"priority": 3}})],
    ids=["none", "bare", "context", "no properties", "other properties"],
)
def test_a_request_that_was_given_none_has_no_seat(request_: object) -> None:
    assert seat_of(request_) is None


@pytest.mark.parametrize(
    "forged",
    [SEAT._asdict(), [*SEAT], SeatOfAnother(*SEAT), loads(dumps(SEAT)), "nonce", 1, None, Seat, Answer],
    ids=["dict", "list", "other class", "from JSON", "str", "int", "none", "the class", "the other class"],
)
def test_what_a_message_brings_along_under_the_key_is_no_seat(forged: object) -> None:
    request = worker_request(None)
    give_seat(request, SEAT)
    [key] = request.request_dict["properties"]

    assert seat_of(Context({"properties": {key: forged}})) is None


@pytest.mark.parametrize("forged", [SEAT, tuple(SEAT), [*SEAT], Answer(copy=lambda: 1)], ids=str)
def test_no_property_of_a_message_has_the_name_of_the_seat(forged: object) -> None:
    request = worker_request(None)
    give_seat(request, SEAT)
    [key] = request.request_dict["properties"]
    [name] = loads(dumps({key: None}))  # as a broker carries it

    assert isinstance(name, str)
    assert seat_of(Context({"properties": {name: forged}})) is None


def test_a_seat_is_pickled_without_a_class_to_look_up() -> None:
    request = worker_request(None)
    give_seat(request, SEAT)

    assert b"cachetiers" not in pickle.dumps(request.request_dict)


def test_a_retry_does_not_carry_the_seat_of_its_attempt() -> None:
    request = worker_request({"priority": 3})
    give_seat(request, SEAT)
    sent_again = Context(request.request_dict).as_execution_options()

    assert SEAT.nonce not in repr(sent_again)


# -- key and tags that the main process has derived -------------------------------------------------------------------


@contextmanager
def seated(task: Any, args: tuple[Any, ...], seat: Seat) -> Iterator[None]:
    """While a worker's slot runs the task's request."""
    request = worker_request(None)
    give_seat(request, seat)
    context = Context({**request.request_dict, "args": args, "kwargs": {}, "called_directly": False})
    task.request_stack.push(context)
    try:
        yield
    finally:
        task.request_stack.pop()


def key_and_tags(task: Any, *args: Any) -> Seat:
    call = task.memoized.call(args, {})
    return Seat("nonce", digest=call.digest, tags=call.tags)


def app_with(base: type[Any]) -> Any:
    app = Celery("seats", broker="memory://", set_as_current=False)

    @app.task(base=base, ttl=60, tags=["double:{number}"], shared=False)
    def double(number: int) -> int:
        return 2 * number

    return double


def test_a_slot_takes_key_and_tags_from_the_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    double = app_with(CachedTask)
    seat = key_and_tags(double, 4)
    with monkeypatch.context() as patch, seated(double, (4,), seat):
        patch.setattr(type(double.memoized), "call", never)
        assert double(4) == 8

    assert double.cache.get(4) == 8
    CacheTiers(double.app).cache.invalidate(["double:4"])
    assert double.cache.get(4) is MISSING


class Another(CachedTask):
    """Calls its body with another argument than the message has."""

    abstract = True

    def __call__(self, number: int) -> Any:
        return super().__call__(number + 1)


def test_a_task_that_calls_itself_with_other_arguments_has_their_key() -> None:
    double = app_with(Another)
    with seated(double, (4,), key_and_tags(double, 4)):
        assert double(4) == 10

    assert double.cache.key(5) != double.cache.key(4)
    assert double.cache.get(5) == 10
    assert double.cache.get(4) is MISSING
