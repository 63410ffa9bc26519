"""Real PostgreSQL and MariaDB processes: started on a free loopback port, removed without a trace.

Decides where their programs are found and how one server is run. Both refuse to run as root: then they run as the user
that their packages make.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Self

import pytest

from tests.processes import Process, ReservedPort, remove_directory, scratch_directory, unavailable, wait_until

START_TIMEOUT = 60.0


class DatabaseServer:
    """One server with an empty database `tests`, which the user `tests` may use without a password.

    Costs: two to five seconds; use the session fixtures `postgres_server` and `mariadb_server`.
    """

    users: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self.programs = self._programs()
        self.directory = scratch_directory("database")
        self._port = ReservedPort()
        self._as_user = _as_user(self.users, self.directory)
        self._process = Process(
            [*self._as_user, *self._command()], log=Path(f"{self.directory}.log"), cwd=self.directory
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} 127.0.0.1:{self.port} {self._process!r}>"

    @property
    def port(self) -> int:
        return self._port.number

    def _programs(self) -> Path:
        """The directory of its programs; skips the test where there is none."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _prepare(self) -> list[str]:
        """The command that makes its files."""
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def url(self) -> str:
        """SQLAlchemy's URL of the database."""
        raise NotImplementedError

    def start(self) -> None:
        """Make the files, start, and return when it answers; after `stop` only start."""
        if not (self.directory / "data").exists():
            self._run(self._prepare())
        self._process.start()
        wait_until(self._answers, timeout=START_TIMEOUT, message=f"start of {self!r}", process=self._process)

    def stop(self) -> None:
        """SIGTERM: an orderly end, or SIGKILL where clients keep it from that."""
        self._process.stop()

    def _run(self, command: list[str]) -> None:
        subprocess.run([*self._as_user, *command], check=True, capture_output=True, cwd=self.directory, timeout=120)

    def close(self) -> None:
        """End it and remove its directory. A second call does nothing."""
        self._process.kill()
        self._port.release()
        remove_directory(self.directory)
        self._process.log.unlink(missing_ok=True)


class PostgresServer(DatabaseServer):
    """PostgreSQL, from PATH or from where Debian keeps its versions."""

    users = ("postgres", "nobody")

    def _programs(self) -> Path:
        if found := shutil.which("postgres"):
            return Path(found).parent
        versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
        newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
        if newest is None:
            unavailable("no PostgreSQL: install it (Debian: apt-get install postgresql)")
        return newest.parent

    def _prepare(self) -> list[str]:
        options = ["--username=tests", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        return [str(self.programs / "initdb"), "-D", str(self.directory / "data"), *options]

    def _command(self) -> list[str]:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory, "fsync": "off"}
        return [
            *(str(self.programs / "postgres"), "-D", str(self.directory / "data"), "-p", str(self.port)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(f"host=127.0.0.1 port={self.port} user=tests dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """SIGINT: its fast end; at SIGTERM it waits for its clients."""
        self._process.send_signal(signal.SIGINT)
        wait_until(lambda: not self._process.running, timeout=30, message=f"stop of {self!r}")

    def url(self) -> str:
        return f"postgresql+psycopg://tests@127.0.0.1:{self.port}/postgres"


class MariaServer(DatabaseServer):
    """MariaDB, from PATH."""

    users = ("mysql", "nobody")

    def _programs(self) -> Path:
        found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if found is None or shutil.which("mariadb-install-db") is None:
            pytest.skip("no MariaDB: install it (Debian: apt-get install mariadb-server)")
        return Path(found).parent

    def _prepare(self) -> list[str]:
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        return [str(shutil.which("mariadb-install-db")), "--no-defaults", f"--datadir={self.directory}/data", *options]

    def _command(self) -> list[str]:
        return [
            *(str(self.programs / "mariadbd"), "--no-defaults", f"--datadir={self.directory}/data"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={self.directory}/socket"),
            *("--skip-grant-tables", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"),
        ]

    def _answers(self) -> bool:
        import pymysql

        try:
            with pymysql.connect(host="127.0.0.1", port=self.port, user="tests", connect_timeout=2) as connection:
                connection.cursor().execute("CREATE DATABASE IF NOT EXISTS tests")
        except pymysql.err.OperationalError:
            return False
        return True

    def url(self) -> str:
        return f"mysql+pymysql://tests@127.0.0.1:{self.port}/tests"


def _as_user(users: tuple[str, ...], directory: Path) -> list[str]:
    """What runs a command as one of these users, who gets the directory, if we are root."""
    if os.geteuid() != 0:
        return []
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam(next(name for name in users if name in known))
    os.chown(directory, user.pw_uid, user.pw_gid)
    # A process that changes its user no longer dies with its parent, unless it says so again.
    setpriv = str(shutil.which("setpriv") or unavailable("no setpriv to run a database as another user than root"))
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig=KILL", "--"]
