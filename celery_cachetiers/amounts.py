"""Ratios, durations, sizes and counts for people: in each log line, report and command they look the same."""

from __future__ import annotations


def percent(ratio: float | None) -> str:
    """A ratio; a dash where there is none. Never rounded up, as to a target that was not reached.

    >>> percent(0.9312), percent(0.89996), percent(None)
    ('93.1 %', '89.9 %', '-')
    """
    return "-" if ratio is None else f"{int(1000 * ratio + 1e-9) / 10:.1f} %"


def span(seconds: float) -> str:
    """A duration, in the unit that fits.

    >>> [span(each) for each in (0, 0.00042, 0.25, 0.9996, 12.34, 90, 7200, 400_000)]
    ['0 s', '0.42 ms', '250 ms', '1 s', '12.3 s', '90 s', '2 h', '4.6 d']
    """
    ms = float(f"{1000 * seconds:.3g}")
    if ms < 1000:
        return f"{ms:g} ms" if ms > 0 else "0 s"
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / length, 1):g} {unit}"
    return f"{round(seconds / 86_400, 1):g} d"


def size(count: float) -> str:
    """Bytes.

    >>> size(512), size(1536), size(64 * 1024**2)
    ('512 B', '1.5 KiB', '64.0 MiB')
    """
    if count < 1024:
        return f"{count:.0f} B"
    step = min((int(count).bit_length() - 1) // 10, 3)
    return f"{count / 1024**step:.1f} {('KiB', 'MiB', 'GiB')[step - 1]}"


def counted(number: int, one: str, more: str = "") -> str:
    """So many of a thing.

    >>> counted(1, "write"), counted(2, "write"), counted(2, "process", "processes")
    ('1 write', '2 writes', '2 processes')
    """
    return f"{number} {one if number == 1 else more or f'{one}s'}"
