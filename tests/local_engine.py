"""A stand-in for the Docker engine that runs "containers" as processes of this machine.

pytest-celery reaches Docker only through the fixture `docker_client` of pytest-docker-tools. `LocalEngine` has the part
of the docker SDK that those fixtures call (`containers.run` and `create`, `networks.create`, `volumes.create`,
`images.build`), so that every fixture and class of the plugin works unchanged without an engine.

What a container gives and a process does not: file system, network and PID isolation, and the image itself. A worker
runs in the interpreter that runs pytest, with whatever is installed there, and a server is the one on PATH.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from docker.errors import NotFound

from tests.processes import (
    ROOT,
    Process,
    ReservedPort,
    listens,
    remove_directory,
    scratch_directory,
    unavailable,
    wait_until,
)
from tests.servers import FLAVOURS, require_executable

# The interpreter's own directory first: `celery` and `python` of a container are those that run pytest.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

# A container starts with an empty environment. These are kept, as the processes share the machine.
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")

START_TIMEOUT = 5.0


class LocalContainer:
    """The part of `docker.models.containers.Container` that pytest-docker-tools uses."""

    def __init__(
        self,
        engine: LocalEngine,
        image: str,
        command: Sequence[str] | str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        network: str | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        ports: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        **_: Any,
    ) -> None:
        self.id = uuid.uuid4().hex * 2
        self.name = name or f"local_{self.id[:12]}"
        self.labels = dict(labels or {})
        self.status = "created"
        self._engine = engine
        self._image = image
        self._arguments = _words(command)
        self._environment = dict(environment or {})
        self._network = network or "none"
        self._ports = {port: ReservedPort() for port in ports or {}}
        self._mounts = {mount["bind"]: engine.volumes.path(name) for name, mount in (volumes or {}).items()}
        self._directory = engine.root / self.name
        self._directory.mkdir()
        self._log = self._directory / "log"
        self._log.touch()
        self._process: Process | None = None

    @property
    def attrs(self) -> dict[str, Any]:
        """What `docker inspect` would show."""
        ports = {port: [{"HostIp": "127.0.0.1", "HostPort": str(host.number)}] for port, host in self._ports.items()}
        # A container reaches its peer as HOSTNAME on the well-known port, a process needs the real port; the vendors
        # build their URLs as "<scheme>://<Hostname>/<vhost>", so the port goes into the name.
        first = next(iter(self._ports.values()), None)
        return {
            "Config": {
                "Hostname": f"127.0.0.1:{first.number}" if first else self.id[:12],
                "Env": [f"{name}={value}" for name, value in self._environment.items()],
                "Labels": self.labels,
            },
            "HostConfig": {"PortBindings": ports},
            "NetworkSettings": {"Networks": {self._network: {"IPAddress": "127.0.0.1"}}, "Ports": ports},
            "Mounts": [],
        }

    # -- the process ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, and return when its ports accept or it has ended."""
        self._process = Process(self._command(), log=self._log, env=self._environ(), cwd=self._cwd)
        self._process.start()
        wait_until(self._settled, timeout=START_TIMEOUT, message=f"start of {self.name}")

    def _settled(self) -> bool:
        self.reload()
        return self.status == "exited" or all(listens(port.number) for port in self._ports.values())

    def _command(self) -> list[str]:
        words = [self._localized(word).replace("%h", self.id[:12]) for word in self._arguments]
        if self._image.startswith("redis:"):
            return self._redis_command(words)
        if words[:1] == ["celery"]:
            words[:1] = [sys.executable, "-m", "celery"]
        if not words or not shutil.which(words[0], path=PATH):
            unavailable(f"no local program for the image {self._image!r} ({words[:1]}): try --engine=docker")
        return words

    def _redis_command(self, words: list[str]) -> list[str]:
        _, server = require_executable(*reversed(FLAVOURS))
        place = ["--bind", "127.0.0.1", "--port", str(self._ports["6379/tcp"].number), "--dir", str(self._directory)]
        return [server, *words[1:], *place]

    def _environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        own = {name: self._localized(str(value)) for name, value in self._environment.items()}
        # The package under test and the modules of the tests, as an image would have them installed.
        paths = [own.get("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {**kept, "PATH": PATH, **own, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def _localized(self, text: str) -> str:
        """A path of the container ("/app/...") as the path in the volume's directory."""
        for bind, path in self._mounts.items():
            if text == bind or text.startswith(f"{bind}/"):
                return f"{path}{text[len(bind) :]}"
        return text

    @property
    def _cwd(self) -> Path:
        return next(iter(self._mounts.values()), self._directory)

    # -- life and death, by the SDK's names -----------------------------------------------------------------------

    def reload(self) -> None:
        """Bring `status` up to date."""
        if self._process is None:
            self.status = "created"
        elif self._process.running:
            self.status = "running"
        else:
            self._process.kill()  # the end of PID 1 ends every process of a container
            self.status = "exited"

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal, SIGKILL by default; SIGKILL goes to every process of the container."""
        process, number = self._started(), _signal_number(signal or "SIGKILL")
        if number == _signal_number("SIGKILL"):
            process.kill()
        else:
            process.send_signal(number)

    def stop(self, timeout: float = 10) -> None:
        """SIGTERM, and after `timeout` seconds SIGKILL."""
        if self._process is not None:
            self._process.stop(timeout)
        self.reload()

    def restart(self, timeout: float = 10) -> None:
        """Stop, then start with the same ports and files."""
        self.stop(timeout)
        self.start()

    def wait(self, timeout: float = 60, **_: Any) -> dict[str, Any]:
        """Wait for the end of the process and return its exit status."""
        process = self._started()
        wait_until(lambda: not process.running, timeout=timeout, message=f"end of {self.name}")
        return {"StatusCode": process.returncode}

    def remove(self, **_: Any) -> None:
        """End the process and remove what it has left."""
        if self._process is not None:
            self._process.kill()
        self.status = "removed"
        for port in self._ports.values():
            port.release()
        self._engine.containers.forget(self)
        remove_directory(self._directory)

    def _started(self) -> Process:
        if self._process is None:
            raise RuntimeError(f"container {self.name} was never started")
        return self._process

    # -- talking to it --------------------------------------------------------------------------------------------

    def logs(self, **_: Any) -> bytes:
        """Everything that the process has written."""
        return self._log.read_bytes()

    def exec_run(self, cmd: str | Sequence[str], **_: Any) -> tuple[int, bytes]:
        """Run a command beside the process; returns its exit status and output."""
        if isinstance(cmd, str) and cmd.startswith("cat /proc/net/"):
            return 0, self._listening(cmd)  # how pytest-docker-tools finds the open ports
        words = _words(cmd)
        if words[0] == "python":
            words[0] = sys.executable
        done = subprocess.run(
            words, cwd=self._cwd, env=self._environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return done.returncode, done.stdout

    def _listening(self, cmd: str) -> bytes:
        rows = [
            f"0: 00000000:{int(port.split('/')[0]):04X} 00000000:0000 0A"
            for port, host in self._ports.items()
            if port.endswith("/tcp") and "tcp" in cmd and listens(host.number)
        ]
        return "\n".join(rows).encode()

    def put_archive(self, path: str, data: io.BytesIO) -> bool:
        """Unpack a tar archive into a directory of the container."""
        with tarfile.open(fileobj=data) as archive:
            archive.extractall(self._localized(path), filter="data")
        return True

    def get_archive(self, path: str, **_: Any) -> tuple[list[bytes], dict[str, Any]]:
        """A file or directory of the container as a tar archive."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self._localized(path), arcname=Path(path).name)
        return [buffer.getvalue()], {}


class _Containers:
    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._known: set[LocalContainer] = set()

    def create(self, image: str, command: Any = None, **options: Any) -> LocalContainer:
        container = LocalContainer(self._engine, self._engine.images.name(image), command, **options)
        self._known.add(container)
        return container

    def run(self, image: str, command: Any = None, **options: Any) -> LocalContainer:
        container = self.create(image, command, **options)
        container.start()
        return container

    def get(self, name: str) -> LocalContainer:
        for container in self._known:
            if name in (container.id, container.name):
                return container
        raise NotFound(f"No such container: {name}")

    def forget(self, container: LocalContainer) -> None:
        self._known.discard(container)

    def remove_all(self) -> None:
        for container in list(self._known):
            container.remove()


class _Networks:
    def create(self, name: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(name=name, id=name, remove=lambda: None)


class _Volumes:
    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        return self._root / name

    def create(self, name: str, **_: Any) -> SimpleNamespace:
        path = self.path(name)
        path.mkdir(parents=True)
        return SimpleNamespace(name=name, id=name, remove=lambda force=False: remove_directory(path))


class _Images:
    """Nothing is built: an image is the name that tells `LocalContainer` what to run."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def build(self, tag: str = "scratch", **_: Any) -> tuple[SimpleNamespace, list[Any]]:
        image = SimpleNamespace(id=f"local:{uuid.uuid4().hex}", tags=[tag])
        self._names[image.id] = tag
        return image, []

    def name(self, image: str) -> str:
        return self._names.get(image, image)


class LocalEngine:
    """The part of `docker.DockerClient` that pytest-docker-tools uses. Leaving its context ends every process."""

    def __init__(self) -> None:
        self.root = scratch_directory("engine")
        self.containers = _Containers(self)
        self.networks = _Networks()
        self.volumes = _Volumes(self.root / "volumes")
        self.images = _Images()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.containers.remove_all()
        remove_directory(self.root)


def _words(command: Sequence[str] | str | None) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command or [])


def _signal_number(value: str | int) -> int:
    if isinstance(value, str) and not value.isdigit():
        return int(signal.Signals[value if value.startswith("SIG") else f"SIG{value}"])
    return int(value)
