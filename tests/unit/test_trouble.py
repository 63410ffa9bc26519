"""Which writes are tried together after some of them were in a batch that hung."""

from __future__ import annotations

import pytest

from celery_cachetiers.trouble import MAX_SUSPECTS, Trouble

EIGHT = list("abcdefgh")


def test_what_hung_together_is_tried_in_halves_after_all_that_never_hung() -> None:
    trouble = Trouble()
    trouble.hung(EIGHT)

    assert trouble.pieces(["x", *EIGHT, "y"]) == [["x", "y"], EIGHT[:4], EIGHT[4:]]


def test_the_least_suspected_are_tried_first() -> None:
    trouble = Trouble()
    trouble.hung(["a"])
    trouble.hung(EIGHT[4:])

    assert trouble.pieces(EIGHT) == [["b", "c", "d"], ["e", "f"], ["g", "h"], ["a"]]


def test_a_larger_batch_that_hangs_clears_nobody() -> None:
    trouble = Trouble()
    trouble.hung(["a"])
    trouble.hung(EIGHT)

    assert trouble.pieces(EIGHT)[-1] == ["a"]


def test_what_is_settled_is_suspected_no_more() -> None:
    trouble = Trouble()
    trouble.hung(["a", "b", "c"])
    trouble.taken(["a"])
    trouble.settled(["b"])

    assert [trouble.suspects(key) for key in "abcx"] == [False, False, True, False]


def test_suspects_are_bounded() -> None:
    trouble = Trouble()
    for number in range(2 * MAX_SUSPECTS // 1000 + 2):
        trouble.hung([f"{number}:{key}" for key in range(1000)])

    suspects = int(repr(trouble).split(", ")[1].split()[0])
    assert suspects <= MAX_SUSPECTS + 1000


@pytest.mark.parametrize("good", ["taken", "settled"])
def test_only_what_was_taken_ends_an_outage(good: str) -> None:
    trouble = Trouble()
    for _ in range(3):
        trouble.failed()
    getattr(trouble, good)(["a"])

    assert (trouble.delay(1.0) <= 1.0) is (good == "taken")
