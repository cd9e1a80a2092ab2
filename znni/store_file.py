"""The SQLite file behind the store: opened safely by several processes at once, and its failures said in words."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from znni.errors import FormatError, RunFailed, ZnniError

#: Raised when tables change so that older versions cannot use them.
SCHEMA_VERSION = 2
#: Marks the file as a store of znni ("znni" in ASCII).
_APPLICATION_ID = 0x7A6E6E69
_BUSY_TIMEOUT_S = 30.0

SCHEMA = """
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY,
    layer TEXT NOT NULL,            -- JSON, as znni.layers.describe
    shape TEXT NOT NULL,            -- JSON, input (batch, channels, z, y, x)
    primitive TEXT NOT NULL,
    config TEXT NOT NULL,           -- JSON
    threads INTEGER NOT NULL,
    device TEXT NOT NULL,
    machine TEXT NOT NULL,          -- fingerprint
    kernels TEXT NOT NULL,          -- digest of sources and flags
    samples TEXT NOT NULL DEFAULT '[]',  -- JSON, seconds per call, all of them, in the order taken
    median_s REAL,
    iqr_s REAL,
    single INTEGER NOT NULL DEFAULT 0,
    early_stopped INTEGER NOT NULL DEFAULT 0,
    finished INTEGER NOT NULL DEFAULT 0,
    failed TEXT,                    -- the reason, where it did
    predicted_bytes INTEGER,
    measured_bytes INTEGER,
    relative_l2 REAL,
    created TEXT NOT NULL,
    clock TEXT NOT NULL DEFAULT 'wall',  -- whose seconds the samples are: the host's ('wall') or the device's ('device')
    wall_s REAL,                    -- of one call until it is done, where the samples are the device's
    cold_s REAL,                    -- of preparing and the first call, kernels compiled and tables made
    predicted_device_bytes INTEGER,
    measured_device_bytes INTEGER
);
CREATE INDEX measurements_by_machine ON measurements (machine, threads, layer);
CREATE TABLE plan_runs (
    id INTEGER PRIMARY KEY,
    plan TEXT NOT NULL,             -- digest
    request TEXT,                   -- digest
    machine TEXT NOT NULL,
    predicted_voxels_per_s REAL,
    measured_voxels_per_s REAL,
    samples TEXT NOT NULL DEFAULT '[]',  -- JSON, seconds per run
    predicted_bytes INTEGER,
    peak_bytes INTEGER,
    failed TEXT,
    created TEXT NOT NULL,
    device TEXT NOT NULL DEFAULT 'cpu',  -- 'cpu', 'gpu' or both: 'split'
    predicted_device_bytes INTEGER,
    peak_device_bytes INTEGER
);
CREATE INDEX plan_runs_by_plan ON plan_runs (plan);
CREATE TABLE verifications (plan TEXT PRIMARY KEY, result TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE requests (
    digest TEXT PRIMARY KEY,
    spent_s REAL NOT NULL,
    trials INTEGER NOT NULL,
    plan TEXT,                      -- JSON, the best plan so far
    complete INTEGER NOT NULL,
    updated TEXT NOT NULL
);
CREATE TABLE ceilings (
    machine TEXT NOT NULL,
    threads INTEGER NOT NULL,
    flop_per_s REAL NOT NULL,
    bytes_per_s REAL NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (machine, threads)
);
CREATE TABLE device_ceilings (
    machine TEXT PRIMARY KEY,       -- fingerprint, the GPU included
    flop_per_s REAL NOT NULL,
    bytes_per_s REAL NOT NULL,
    upload_bytes_per_s REAL NOT NULL,
    download_bytes_per_s REAL NOT NULL,
    created TEXT NOT NULL
);
"""

#: What makes the next version of a store of each older one.
_MIGRATIONS = {
    1: """
ALTER TABLE measurements ADD COLUMN clock TEXT NOT NULL DEFAULT 'wall';
ALTER TABLE measurements ADD COLUMN wall_s REAL;
ALTER TABLE measurements ADD COLUMN cold_s REAL;
ALTER TABLE measurements ADD COLUMN predicted_device_bytes INTEGER;
ALTER TABLE measurements ADD COLUMN measured_device_bytes INTEGER;
ALTER TABLE plan_runs ADD COLUMN device TEXT NOT NULL DEFAULT 'cpu';
ALTER TABLE plan_runs ADD COLUMN predicted_device_bytes INTEGER;
ALTER TABLE plan_runs ADD COLUMN peak_device_bytes INTEGER;
CREATE TABLE device_ceilings (
    machine TEXT PRIMARY KEY,
    flop_per_s REAL NOT NULL,
    bytes_per_s REAL NOT NULL,
    upload_bytes_per_s REAL NOT NULL,
    download_bytes_per_s REAL NOT NULL,
    created TEXT NOT NULL
);
""",
}


def default_path() -> Path:
    """``$ZNNI_STORE``, else ``znni/store.db`` under the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    named = os.environ.get("ZNNI_STORE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "znni" / "store.db"


class StoreFile:
    """The file `path` with the tables of `SCHEMA`, made where there is none; by default `default_path`.

    Raises
    ------
    FormatError
        Where the file is damaged, not a store of znni, or one of a newer version.
    ZnniError
        Where it cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = default_path() if path is None else Path(path)
        if path is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unusable(error.strerror) from error
        try:
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything is committed already."""
        self._connection.close()

    def execute(self, sql: str, values: Iterable | dict = ()) -> sqlite3.Cursor:
        """Run and commit one statement; what goes wrong is said in znni's own errors."""
        try:
            return self._connection.execute(sql, values)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def append_sample(self, table: str, row: int, seconds: float) -> None:
        """Add one sample to the JSON list of a row, to its last digit."""
        if not math.isfinite(seconds):
            raise ValueError(f"a sample must be a finite number of seconds, got {seconds}")
        self.execute(
            f"UPDATE {table} SET samples = json_insert(samples, '$[#]', json(?)) WHERE id = ?",
            (repr(float(seconds)), row),
        )

    def insert(self, table: str, columns: dict[str, object]) -> int:
        """Add a row; its id."""
        names, places = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        return self.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", columns).lastrowid

    def update(self, table: str, row: int, columns: dict[str, object]) -> None:
        """Set columns of a row."""
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        self.execute(f"UPDATE {table} SET {changes} WHERE id = :id", columns | {"id": row})

    def select(self, table: str, wanted: dict[str, object]) -> list[sqlite3.Row]:
        """The rows whose columns are as wanted (None: whatever they are), oldest first."""
        wanted = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = :{name}" for name in wanted) or "1"
        return self.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY id", wanted).fetchall()

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._use_write_ahead_log()
        self.execute("PRAGMA synchronous = NORMAL")  # with a write-ahead log: a killed process loses nothing committed
        if self._version() == 0:
            self._create()
        version = self._version()
        if version > SCHEMA_VERSION:
            raise FormatError(
                f"the store {self.path} was written by a newer znni (store version {version}, this one reads up to "
                f"{SCHEMA_VERSION}); update znni, or give another store"
            )
        if version < SCHEMA_VERSION:
            self._migrate()

    def _use_write_ahead_log(self) -> None:
        """SQLite answers "locked" at once, whatever the timeout, while another process is changing the mode as well."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.DatabaseError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise self._explained(error) from error
            time.sleep(0.01)

    def _version(self) -> int:
        version = self.execute("PRAGMA user_version").fetchone()[0]
        tables = self.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        mark = self.execute("PRAGMA application_id").fetchone()[0]  # last: another process may just be making them
        if mark != _APPLICATION_ID and (tables or version):
            raise FormatError(
                f"{self.path} is an SQLite database of another program, not a store of znni; give another file"
            )
        return version

    def _create(self) -> None:
        with self._alone():
            if self._version() == 0:  # no other process came first
                self._run(SCHEMA)
                self.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self) -> None:
        """Bring the tables of an older version up to date; what they hold stays."""
        with self._alone():
            for version in range(self._version(), SCHEMA_VERSION):  # none, where another process came first
                self._run(_MIGRATIONS[version])
                self.execute(f"PRAGMA user_version = {version + 1}")

    def _run(self, statements: str) -> None:
        for statement in statements.split(";\n"):
            self.execute(statement)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One transaction, before which no other process can begin to change anything."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def _unusable(self, why: object) -> ZnniError:
        return ZnniError(f"cannot open the store {self.path}: {why}; give another file with --store, or set ZNNI_STORE")

    def _explained(self, error: sqlite3.DatabaseError) -> Exception:
        text = str(error)
        if "not a database" in text or "image is malformed" in text:
            return FormatError(
                f"{self.path} is not a store of znni, or is damaged ({text}); move it away, or give another file"
            )
        if _is_busy(error):
            return RunFailed(
                f"the store {self.path} was locked by another process for {_BUSY_TIMEOUT_S:.0f} s; try again"
            )
        if "full" in text or "disk I/O" in text:
            return RunFailed(f"cannot write the store {self.path}: {text}")
        if "readonly" in text or "unable to open" in text:
            return self._unusable(text)
        return error


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return "locked" in str(error) or "busy" in str(error)
