"""Which of a database's operational errors are nobody's fault, and which are a row's.

A row's fault that is taken for an outage holds up all others for ever; an outage that is taken for a row's fault costs
that row an attempt.
"""

from __future__ import annotations

from typing import Final

MYSQL_OUTAGES: Final = frozenset(
    {
        *(1021, 1037, 1038, 1041, 1114, 1135, 1194, 1195),  # no room, no memory, no thread, a crashed table
        *(1040, 1129, 1203, 1226, 4031),  # no connection more
        *(1042, 1043, 1044, 1045, 1049, 1054, 1130, 1142, 1143, 1227),  # not for this user, not this schema
        *(1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1927),  # going down, or cut off
        *(1205, 1206, 1213, 1317, 1637, 1969, 3024, 3101, 3572),  # locks, and limits of time
        *(1290, 1792, 1836),  # read-only
    }
)
"""MySQL's and MariaDB's server errors that any row would have met; 2000 to 2999 are the client's own."""


def is_outage(error: object) -> bool:
    """Whether a driver's ``OperationalError`` would have hit every row."""
    number = next(iter(getattr(error, "args", ())), None)
    if isinstance(number, int):  # MySQL's drivers: their operational errors are all that have no other class
        return number in MYSQL_OUTAGES or 2000 <= number < 3000
    state = str(getattr(error, "sqlstate", None) or "")
    return not state.startswith("54")  # PostgreSQL's limits, such as a value too large for an index
