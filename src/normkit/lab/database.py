"""SQLite files that one process at a time holds, each with the version of its schema; refusals in one line.

What was committed survives a kill of the process, whatever it was at. To survive a power cut too it has to have
reached the disk, and waiting for that takes milliseconds, where a short trial takes some ten: so `Disk` waits once a
second at most, and a power cut costs what was committed since, and never the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType

from normkit.errors import InputError

_EVERY = 1.0  # seconds between two waits for the disk


def connect(
    path: Path, schema: str, version: int, what: str, upgrades: Mapping[int, str] = MappingProxyType({})
) -> sqlite3.Connection:
    """Open a file, or make it, and its folder. A kill lets go of it.

    Args:
        path: the file.
        schema: statements that make the tables of a new file.
        version: of the schema; kept in SQLite's user_version.
        what: what is in the file, for a person.
        upgrades: by an older version that may be found, the statements that make the next one of it.

    Raises:
        InputError: a file that cannot be written, is something else or of a newer version, or is in use.
    """
    with one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=1.0)
    try:
        with one_line(path):
            _open(database, path, schema, version, what, upgrades)
    except BaseException:
        database.close()
        raise
    return database


def _open(
    database: sqlite3.Connection,
    path: Path,
    schema: str,
    version: int,
    what: str,
    upgrades: Mapping[int, str],
) -> None:
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    (found,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found > version:
        raise InputError(
            f"{path}: made by a newer normkit (store version {found}, this one knows {version}): "
            "update normkit, or choose another folder"
        )
    if tables and found < version and found not in upgrades:
        raise InputError(f"{path}: an SQLite database, but not {what}: choose another folder")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA foreign_keys = ON")
    statements = "".join(upgrades[older] for older in range(found, version)) if tables else schema
    if statements:
        database.executescript(f"BEGIN; {statements} PRAGMA user_version = {version}; COMMIT;")


class Disk:
    """When transactions of a file wait for the disk."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._waited = -_EVERY

    def due(self) -> bool:
        """Whether the next transaction waits for it, and all before with it; call outside of one."""
        due = monotonic() - self._waited >= _EVERY
        self._database.execute(f"PRAGMA synchronous = {'FULL' if due else 'NORMAL'}")
        if due:
            self._waited = monotonic()
        return due


@contextmanager
def one_line(path: Path) -> Generator[None]:
    """Turn what the file system or SQLite refuses into one line that says where."""
    try:
        yield
    except OSError as failure:
        raise InputError(f"{failure.filename or path}: {failure.strerror or failure}") from failure
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # ours to mend, not the user's
    except sqlite3.Error as failure:
        locked = "locked" in str(failure)
        reason = f"{failure}: choose another folder, or move the file away"
        if locked:
            reason = "in use by another process: wait for it, or choose another folder"
        elif "full" in str(failure) or "disk I/O" in str(failure):
            reason = f"{failure}: make room, and run the same command again; what was finished is kept"
        raise InputError(f"{path}: {reason}") from failure
