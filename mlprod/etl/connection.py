"""A connection to a database, in a transaction that only reads; and what becomes of one that cannot be made, or breaks.

Promise: no password in a message; one line. A server that cannot be reached at the start is the user's to mend; one that was
reached and goes away is worth another attempt.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from mlprod import discreet
from mlprod.config import SqlSource
from mlprod.errors import ConnectionLost, DataError, QuotingError, wordless
from mlprod.etl.databases import completed, database_of, shown
from mlprod.validation import SECRETS

SHUTDOWN = 1053  # MySQL's, which SQLAlchemy takes for the statement's fault
WHY = "its text is hidden: it may hold a secret"
# What a driver's error is about: SQL's classes of states for names and rights, connections, resources and transactions.
STATES = frozenset({"08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"})
OF_NAMES = frozenset({"OperationalError", "ProgrammingError", "NotSupportedError", "InterfaceError"})  # where it has no state
OF_VALUES = frozenset({"DataError", "IntegrityError", "InternalError", "InvalidInputException"})
UNDECODED = " with text "  # SQLite's, before bytes that are no text
GOES_ON = "the same command goes on with the tasks that are left"


class Unreachable(DataError):
    """There is no such server or database, or it does not let this user in."""


def connect(source: SqlSource) -> sa.Engine:
    """Returns an engine for a database that exists.

    Raises:
        DataError: a URL that SQLAlchemy cannot read, a driver that is not installed, or a missing file.
    """
    url = source.url
    for name in re.findall(r"\$\{?(\w+)", url):
        if name not in os.environ:
            raise DataError(f"config.etl.source.url={url!r}: the environment variable {name} is not set")
    try:
        parsed = sa.make_url(os.path.expandvars(url))
    except sa.exc.ArgumentError as error:
        way = "give one such as sqlite:///data.db or postgresql://user:$PASSWORD@host/name"
        raise DataError(f"config.etl.source.url={url!r}: {error}; {way}") from wordless(error, WHY)
    except ValueError as error:  # its text may hold a part of a password
        raise DataError(
            f"config.etl.source.url={url!r}: the port is not a number, or a password holds '/', ':' or '@'"
        ) from wordless(error, WHY)
    database = database_of(parsed)
    try:
        engine = sa.create_engine(completed(parsed, source.timeout_s))
    except (ModuleNotFoundError, sa.exc.NoSuchModuleError) as error:
        raise DataError(f"config.etl.source.url={url!r}: {error}; install {database.install}") from error
    except Exception as error:  # a dialect's own: of an option, or of credentials that BigQuery's looks for here already
        told = f"config.etl.source.url={url!r}: {one_line(error, parsed)}"
        raise DataError(f"{told}; mend the URL, or what it names") from wordless(error, WHY)
    if database.is_file and not (parsed.database and Path(parsed.database).is_file()):
        raise DataError(
            f"config.etl.source.url={url!r}: there is no database file {parsed.database!r}; create it, or mend the path"
        )
    return engine


def named(source: SqlSource) -> str:
    """Returns a source as messages name it."""
    return f"table {source.table!r}" if source.table else "the query"


def one_line(error: BaseException, url: sa.URL) -> str:
    """Returns an error's text, without the secrets of a URL, as they are and as URLs write them."""
    text = " ".join(str(error).split())
    secrets = [url.password, *(value for name, value in url.query.items() if re.fullmatch(SECRETS, name, re.IGNORECASE))]
    for secret in map(str, filter(None, secrets)):
        for written in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(written, "***")
    return text


def refused(where: str, error: sa.exc.StatementError, url: sa.URL) -> DataError | ConnectionLost:
    """Returns what it means for a build that a database refused a statement."""
    told = f"{where}: {one_line(error.orig or error, url)}"
    if isinstance(error, sa.exc.DBAPIError) and (error.connection_invalidated or _code(error.orig) == SHUTDOWN):
        return lost(told)
    return quoting(where, error.orig or error, url)


def quoting(where: str, error: BaseException, url: sa.URL, said: str = "") -> QuotingError:
    """Returns what a database says of a statement (`said`; "": the error's text), which may quote a value."""
    told = f"{where}: {said or one_line(error, url)}"
    if is_of_names(error):
        return QuotingError(told, told.partition(UNDECODED)[0])
    return QuotingError(told, f"{where}: the database refused a value ({discreet.WHY}); mend the value, or the query")


def is_of_names(error: BaseException) -> bool:
    """Whether a driver's error is about names, rights or the connection, and not about a value."""
    state = str(getattr(error, "sqlstate", None) or "")
    if state:
        return state[:2] in STATES
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & OF_NAMES) and not kinds & OF_VALUES


def _code(error: BaseException | None) -> Any:
    """Returns the number that MySQL's drivers put before the text of an error."""
    return error.args[0] if error is not None and error.args else None


def lost(told: str) -> ConnectionLost:
    """Returns the error of a connection that broke."""
    return ConnectionLost(f"{told}; when the database is there again, {GOES_ON}")


@contextmanager
def connected(source: SqlSource) -> Iterator[sa.Connection]:
    """Gives a connection, in a transaction that only reads where the database has such; a file is opened so.

    Raises:
        Unreachable: there is no connection to be had.
        ConnectionLost: it broke.
        DataError: the database refused a statement.
    """
    engine = connect(source)
    try:
        try:
            connection = engine.connect()
        except sa.exc.DBAPIError as error:
            raise Unreachable(f"database {shown(engine.url)}: {one_line(error.orig or error, engine.url)}") from wordless(
                error, WHY
            )
        try:
            with connection:
                for statement in database_of(engine.url).begin:
                    connection.exec_driver_sql(statement)
                yield connection
        except sa.exc.StatementError as error:
            raise refused(named(source), error, engine.url) from wordless(error, WHY)
    finally:
        engine.dispose()


@contextmanager
def reached_before() -> Iterator[None]:
    """Takes a database that was reached, and now is not, for a connection that is lost."""
    try:
        yield
    except Unreachable as error:
        raise lost(str(error)) from error
