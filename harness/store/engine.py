# SPDX-License-Identifier: GPL-2.0-or-later
"""Open a history: a URL to an engine whose tables are there and as this program knows them.

SQLite files are in WAL mode: readers never wait, and writers wait for each other for at most :data:`BUSY_S`. Every
transaction of a writer begins as one, so that none has to become one half-way, which SQLite refuses at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from harness.errors import HostError, UsageError
from harness.store.tables import HEAD

BUSY_S = 60.0
CONNECT_S = 15
#: Longer than any question to a PostgreSQL takes it.
ANSWER_S = 600.0
_WANTED = "a file such as history.db, sqlite:///FILE, or postgresql://USER@HOST/DATABASE"
#: Whoever makes or changes the tables of a PostgreSQL database holds it.
_MIGRATION_LOCK = 0x706F73746C6F6164


def open_store(text: str, *, create: bool = False) -> sa.Engine:
    """The engine of a history, its tables made or brought up to date.

    :param text: a path is an SQLite file, else a URL of SQLAlchemy; ``postgresql://`` takes psycopg
    :param create: make the SQLite file when it is not there
    :raises UsageError: no such file, no such kind of URL, or a newer postload wrote it
    :raises HostError: it cannot be opened
    """
    url = store_url(text)
    is_file = url.get_backend_name() == "sqlite"
    if is_file and not create and not Path(url.database or "").exists():
        raise UsageError(f"{text}: there is no history; expected {_WANTED} that a run wrote with --store")
    engine = _sqlite(url) if is_file else _postgresql(url)
    try:
        with told(engine):
            _update(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def opened(text: str, *, create: bool = False) -> Iterator[sa.Engine]:
    """The engine of :func:`open_store` for a while; then its connections are closed."""
    engine = open_store(text, create=create)
    try:
        yield engine
    finally:
        engine.dispose()


def store_url(text: str) -> sa.URL:
    """What the user typed as a URL of SQLAlchemy, with its driver.

    :raises UsageError: it is neither a path nor such a URL
    """
    if "://" not in text:
        if not text:
            raise UsageError(f"--store: expected {_WANTED}")
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError(f"--store: it is no URL: expected {_WANTED}") from error
    backend = url.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not url.database:
        raise UsageError(f"--store {url.render_as_string()}: expected {_WANTED}")
    return url.set(drivername="sqlite")


@contextmanager
def told(engine: sa.Engine) -> Iterator[None]:
    """What the database complains of becomes an error of this program, which names the store without its password.

    :raises HostError: in place of any error of the database
    """
    try:
        yield
    except (DBAPIError, sa.exc.TimeoutError) as error:
        words = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
        raise HostError(f"the history {shown(engine.url)}: {words[0]}") from error


def shown(url: sa.URL) -> str:
    """A store as it is told: the path of a file, else the URL without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make {path.parent}: {error.strerror}") from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S, "isolation_level": None})

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "cache_size=-65536"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: sa.URL) -> sa.Engine:
    from harness.store.bounded import bounded_connection

    engine, kind = sa.create_engine(url, connect_args={"connect_timeout": CONNECT_S}), bounded_connection(ANSWER_S)

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, words: Any, options: Any) -> Any:
        return kind.connect(*words, **options)

    return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in a transaction that writes; it is committed when the block ends well."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def insert_into(engine: sa.Engine, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that can say what to do where a row is there already."""
    return postgresql.insert(table) if engine.dialect.name == "postgresql" else sqlite.insert(table)


def _update(engine: sa.Engine) -> None:
    """Bring the tables to :data:`HEAD`; two programs that do so at once are one after the other."""
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        found = _revision(connection)
        if found is not None and found > HEAD:
            raise UsageError(f"{shown(engine.url)}: a newer postload wrote it: its tables are {found}, not {HEAD}")
        if found != HEAD:
            _migrate(connection)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(connection: sa.Connection) -> None:
    # here, because it takes a second that only a new or an old history needs
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
