"""What differs between databases when a connection is made: its driver, its options, and how a session of it begins.

Promise: what the user's URL says stays, but that a DuckDB file is opened to be read only. Times without a zone, and what a query
makes of times, do not depend on whose server it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from mlprod.cores import num_cores

CONNECT_S = 30.0  # a connection takes no longer, whatever an answer may take
SLOW_READER_S = 3600  # of ours, before MySQL gives up to write; it would after 60
DUCKDB_BYTES = "2GB"  # of DuckDB's own; a part of it is on its way to us


def _libpq(timeout_s: float) -> dict[str, str]:
    """Of PostgreSQL's C library, which psycopg and ADBC are made of: a peer that is gone is noticed within `timeout_s`."""
    probe = max(int(timeout_s) // 4, 1)
    return {
        "connect_timeout": str(max(int(min(timeout_s, CONNECT_S)), 2)), "keepalives": "1", "keepalives_idle": str(probe),
        "keepalives_interval": str(probe), "keepalives_count": "3", "tcp_user_timeout": str(int(timeout_s * 1000)),
    }  # fmt: skip


def _mysql(timeout_s: float) -> dict[str, str]:
    """Of PyMySQL and mysqlclient: in whole seconds, each for a read of the socket."""
    limit = str(max(int(timeout_s), 1))
    return {"connect_timeout": str(max(int(min(timeout_s, CONNECT_S)), 1)), "read_timeout": limit, "write_timeout": limit}


def _sqlite(timeout_s: float) -> dict[str, str]:
    """Of sqlite3: how long a locked file is waited for."""
    return {"timeout": str(min(timeout_s, CONNECT_S))}


def _duckdb(timeout_s: float) -> dict[str, str]:
    """Of DuckDB: no more memory and threads than are ours, and no extension is fetched from elsewhere while rows are read."""
    return {"memory_limit": DUCKDB_BYTES, "threads": str(num_cores()), "autoinstall_known_extensions": "false"}


Options = Callable[[float], Mapping[str, str]]
OPTIONS: dict[str, Options] = {  # by SQLAlchemy's name of the driver
    "psycopg": _libpq, "psycopg2": _libpq, "pymysql": _mysql, "mysqldb": _mysql, "pysqlite": _sqlite,
    "duckdb_sqlalchemy": _duckdb,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Database:
    """A kind of database. `driver`: where the URL names none; `begin`: statements with which a session begins; `install`: what
    brings the driver; `is_file`: it is a file, read in this process; `always`: options that no URL changes."""

    driver: str = ""
    begin: tuple[str, ...] = ()
    install: str = "the database's driver"
    is_file: bool = False
    always: tuple[tuple[str, str], ...] = ()


_MYSQL = Database(
    driver="pymysql",
    begin=(
        "SET SESSION time_zone = '+00:00'",
        f"SET SESSION net_write_timeout = {SLOW_READER_S}",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
    install="mlprod[mysql]",
)
DATABASES = {
    "postgresql": Database(begin=("SET TRANSACTION READ ONLY", "SET LOCAL TIME ZONE 'UTC'"), install="mlprod[postgres]"),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": Database(is_file=True),
    "duckdb": Database(
        begin=("SET TimeZone = 'UTC'",), install="mlprod[duckdb]", is_file=True, always=(("access_mode", "READ_ONLY"),)
    ),
}


def database_of(url: sa.URL) -> Database:
    """Returns what is known of the kind of database that a URL names."""
    return DATABASES.get(url.get_backend_name(), Database())


def completed(url: sa.URL, timeout_s: float) -> sa.URL:
    """Returns a URL with its driver and the options of it that it does not name itself.

    Raises:
        sqlalchemy.exc.NoSuchModuleError: SQLAlchemy knows no such database.
    """
    database = database_of(url)
    if url.drivername == url.get_backend_name() and database.driver:
        url = url.set(drivername=f"{url.drivername}+{database.driver}")
    options = OPTIONS.get(url.get_driver_name())
    return url.set(query={**(options(timeout_s) if options else {}), **url.query, **dict(database.always)})


def shown(url: sa.URL) -> str:
    """Returns a URL as a message may show it: without password and options, which may hold secrets too."""
    return url.set(query={}).render_as_string()
