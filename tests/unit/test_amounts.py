"""What log lines, reports and commands say of numbers: the unit that people use, and one thing counted as one."""

from __future__ import annotations

import pytest

from celery_cachetiers.amounts import counted, percent, size, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (0.0004, "0.4 ms"), (0.0996, "99.6 ms"), (0.99949, "999 ms"), (0.9996, "1 s"), (59.96, "60 s"),
        (119, "119 s"), (121, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 d"), (1e9, "11574.1 d"),
    ],
)  # fmt: skip
def test_a_span_of_time_has_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(("ratio", "text"), [(0.89999, "89.9 %"), (0.9, "90.0 %"), (0.29, "29.0 %"), (1.0, "100.0 %")])
def test_a_ratio_is_never_rounded_up_to_its_target(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_a_size_has_the_largest_unit_of_which_there_is_one() -> None:
    assert [size(1023), size(1024), size(1024**3), size(5 * 1024**4)] == ["1023 B", "1.0 KiB", "1.0 GiB", "5120.0 GiB"]


def test_one_thing_is_one() -> None:
    assert [counted(number, "key was", "keys were") for number in (0, 1, 2)] == [
        "0 keys were",
        "1 key was",
        "2 keys were",
    ]
