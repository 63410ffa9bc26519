"""Numbers for people."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def percent(ratio: float | None) -> str:
    """A ratio; a dash where there is none.

    >>> percent(0.8766), percent(None)
    ('87.7 %', '-')
    """
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def seconds(value: float) -> str:
    """A duration, in the unit that fits.

    >>> [seconds(value) for value in (0, 0.00042, 0.25, 12.3, 754, 90_000, 400_000)]
    ['0 s', '0.42 ms', '250 ms', '12.3 s', '12.6 min', '25.0 h', '4.6 d']
    """
    if value == 0:
        return "0 s"
    if value < 1:
        return f"{1000 * value:.3g} ms"
    for limit, by, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if value < limit:
            return f"{value / by:.1f} {unit}"
    return f"{value / 86_400:.1f} d"


def size(value: float) -> str:
    """Bytes.

    >>> size(512), size(1536), size(64 * 1024**2)
    ('512 B', '1.5 KiB', '64.0 MiB')
    """
    if value < 1024:
        return f"{value:.0f} B"
    step = min((int(value).bit_length() - 1) // 10, 3)
    return f"{value / 1024**step:.1f} {('KiB', 'MiB', 'GiB')[step - 1]}"


def rate(value: float) -> str:
    """So many per second.

    >>> [rate(value) for value in (0.0, 0.05, 3.25, 1234.5)]
    ['0', '0.05', '3.2', '1,234']
    """
    if value == 0:
        return "0"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def sparkline(values: Sequence[float | None], highest: float | None = None) -> str:
    """A row of values as blocks: the height is the share of the highest; a gap where there is none.

    >>> sparkline([0, 1, 2, None, 4]), sparkline([0, 0]), sparkline([0.5], highest=1.0)
    ('▁▃▅ █', '▁▁', '▅')
    """
    top = max((value for value in values if value is not None), default=0.0) if highest is None else highest
    return "".join(" " if value is None else _block(value / top if top > 0 else 0.0) for value in values)


def _block(share: float) -> str:
    return _BLOCKS[min(max(round(share * (len(_BLOCKS) - 1)), 0), len(_BLOCKS) - 1)]
