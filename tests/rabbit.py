"""A RabbitMQ node as a process of the test run: own ports, own epmd, own directory, nothing left behind.

Decides how the node is kept apart from any other RabbitMQ on the machine. It is started by RabbitMQ's own script, past
the wrapper of distribution packages, which insists on the user `rabbitmq` and on the system's directories.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Self

import kombu

from tests.processes import (
    Process,
    ReservedPort,
    listens,
    remove_directory,
    scratch_directory,
    unavailable,
    wait_until,
)

START_TIMEOUT = 90.0

# Where distribution packages and the generic archive put the script, seen from the wrapper on PATH.
_SCRIPTS = ("../lib/rabbitmq/bin/rabbitmq-server", "../../usr/lib/rabbitmq/bin/rabbitmq-server")


def require_script() -> tuple[Path, str]:
    """RabbitMQ's start script and the path of epmd; skips the test where one is missing."""
    wrapper, epmd = _which("rabbitmq-server"), _which("epmd")
    if wrapper is None or epmd is None:
        unavailable("no rabbitmq-server: install it (Debian: apt-get install rabbitmq-server)")
    for relative in _SCRIPTS:
        script = (wrapper.parent / relative).resolve()
        if script.is_file():
            return script, str(epmd)
    return wrapper, str(epmd)


def _which(program: str) -> Path | None:
    # Daemons live in directories that a plain user's PATH may lack.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(program, path=path)
    return Path(found) if found else None


class RabbitServer:
    """One RabbitMQ node on loopback ports, user `guest`, vhost `/`, without the management plugin.

    Queues and messages survive `restart`, as far as they are durable.

    Costs: about ten seconds and 140 MB; use the session fixture `rabbit_server` where the test breaks nothing.
    """

    def __init__(self) -> None:
        script, epmd = require_script()
        self.directory = scratch_directory("rabbit")
        self._amqp, self._dist, self._epmd_port = ReservedPort(), ReservedPort(), ReservedPort()
        self._write_configuration()
        environment = self._environment()
        # Started by hand: the epmd that a node starts for itself is a daemon that outlives it.
        self._epmd = Process(
            [epmd, "-port", str(self._epmd_port.number), "-address", "127.0.0.1"],
            log=self.directory / "epmd.log",
            env=environment,
            cwd=self.directory,
        )
        self._node = Process([str(script)], log=self.directory / "log", env=environment, cwd=self.directory)

    def _write_configuration(self) -> None:
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            "vm_memory_high_watermark.absolute = 512MB\n"
            "disk_free_limit.absolute = 10MB\n"
        )
        (self.directory / "advanced.config").write_text("[].\n")
        (self.directory / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        directory = str(self.directory)
        # No setting of another node on this machine may leak in.
        kept = {k: v for k, v in os.environ.items() if not re.match(r"RABBITMQ_|ERL_|NOTIFY_SOCKET$", k)}
        return {
            **kept,
            "HOME": directory,  # the Erlang cookie
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{directory}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{directory}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{directory}/mnesia",
            "RABBITMQ_LOG_BASE": f"{directory}/logs",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{directory}/config",
            "RABBITMQ_PID_FILE": f"{directory}/pid",
            "RABBITMQ_DIST_PORT": str(self._dist.number),
            "ERL_EPMD_PORT": str(self._epmd_port.number),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The script then becomes the Erlang VM instead of waiting for it, so that its pid is the node's.
            "RABBITMQ_ALLOW_INPUT": "true",
            # +sbwt: schedulers that have nothing to do must not spin on a shared machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput -s rabbit boot -kernel inet_dist_use_interface {127,0,0,1} "
                "+sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    def __repr__(self) -> str:
        return f"<RabbitServer 127.0.0.1:{self.port} {self._node!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._amqp.number

    @property
    def pid(self) -> int:
        """Process id of the Erlang VM."""
        return self._node.pid

    @property
    def running(self) -> bool:
        return self._node.running

    def url(self) -> str:
        """`amqp://` URL of the vhost `/`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def connection(self) -> kombu.Connection:
        """A new connection, not yet opened; the caller closes it."""
        return kombu.Connection(self.url(), connect_timeout=5)

    def start(self) -> None:
        """Start epmd and the node, and return when it completes an AMQP handshake."""
        if not self._epmd.running:
            self._epmd.start()
            wait_until(lambda: listens(self._epmd_port.number), timeout=10, message="start of epmd", process=self._epmd)
        self._node.start()
        wait_until(self._answers, timeout=START_TIMEOUT, message="start of RabbitMQ", process=self._node)

    def _answers(self) -> bool:
        if not listens(self.port):  # spares kombu's two seconds between attempts
            return False
        with self.connection() as connection:
            try:
                connection.connect()
            except connection.connection_errors:
                return False
            return True

    def stop(self) -> None:
        """SIGTERM: an orderly end."""
        self._node.stop(30)

    def kill(self) -> None:
        """SIGKILL: the node is gone in the middle of whatever it did."""
        self._node.kill()

    def restart(self) -> None:
        """Stop, then start with the same ports and directory."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the node and its epmd and remove the directory. A second call does nothing."""
        self._node.stop(30)
        self._epmd.kill()
        for port in (self._amqp, self._dist, self._epmd_port):
            port.release()
        remove_directory(self.directory)

    def log_text(self) -> str:
        """Everything that the node has logged."""
        return self._node.log_text()
