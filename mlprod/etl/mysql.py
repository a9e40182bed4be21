"""What MySQL and MariaDB do otherwise: types whose values Python's driver, or SQLAlchemy, would give another meaning.

Promise: a value comes as the database shows it: a `TIME` as its text, also beyond a day and below zero; a `DOUBLE` with all its
digits, a `SET` and JSON as text, a `BIT` as its number. A date of zeros comes as text, so that it is refused as a time, by row.
Price: a `FLOAT` comes with the six digits that MySQL shows.
"""

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

NAMES = ("mysql", "mariadb")  # of SQLAlchemy's dialects


class TimeText(sa.types.TypeDecorator[str]):
    """A time span as MySQL writes it: SQLAlchemy would drop whole days of it."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Returns -26:00:01.5 as `-26:00:01.500000`."""
        if not isinstance(value, dt.timedelta):
            return value
        seconds, micros = divmod(abs(value) // dt.timedelta(microseconds=1), 1_000_000)
        text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}" + (f".{micros:06d}" if micros else "")
        return f"-{text}" if value < dt.timedelta(0) else text


# The driver's numbers of types that a query's columns have.
BY_NUMBER: dict[int, sa.types.TypeEngine[Any]] = {11: TimeText(), 16: mysql.BIT()}


def plain(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    """Returns the type as which a table's column is read."""
    if isinstance(kind, sa.Time):
        return TimeText()
    if isinstance(kind, mysql.SET | sa.JSON):
        return sa.Text()
    return sa.Float() if isinstance(kind, sa.Float) else kind  # SQLAlchemy's DOUBLE cuts digits, to make a Decimal


def let_go(cursor: Any) -> bool:
    """Lets a cursor be closed though rows of it are left, which PyMySQL would read to their end; returns whether there are any.

    Nothing can be asked on its connection any more.
    """
    result: Any = getattr(cursor, "_result", None)
    left: bool = getattr(result, "unbuffered_active", False)
    if left:
        result.unbuffered_active = False
    return left
