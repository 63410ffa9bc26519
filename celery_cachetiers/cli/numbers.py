"""What rates look like, as numbers and as rows of blocks."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


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
