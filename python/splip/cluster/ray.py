"""A Ray cluster: connecting to it, what its machines are, and whether they run the same versions.

Ray starts processes on the machines, places them, watches them and carries what they say to each other; nothing of
that is done here. This module imports Ray when it connects: everything else of splip works without it.
"""

import contextlib
import dataclasses
import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import splip
from splip.cluster.settings import RaySettings
from splip.errors import UserError

CONNECT_SECONDS = 5.0  # for an answer from the address that was given
PROBE_SECONDS = 120.0  # for every machine to start a process and say its versions
STORE = 200 << 20  # bytes of shared memory that Ray's object store gets on a cluster that we start: vectors are small
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # of HTTP/2, which gRPC speaks
SETTINGS = b"\x04"  # kind of a server's first frame
OPTIONS = ("encoder", "address", "workers", "shards", "replicas")  # of --engine ray
HOW = "`ray start --head` starts one, --address HOST:PORT names one, --address local makes one for this command"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or what Ray takes for one."""

    id: str
    name: str
    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"node {self.id[:8]} on {self.name}"


@dataclass(frozen=True)
class Versions:
    """What a machine runs."""

    python: str
    ray: str
    splip: str

    def __str__(self) -> str:
        return f"Python {self.python}, Ray {self.ray}, splip {self.splip}"


@dataclass
class Cluster:
    """A cluster that this process is connected to."""

    address: str

    def nodes(self) -> list[Node]:
        """The machines that are alive now, in a fixed order."""
        ray = import_ray()
        found = []
        for facts in ray.nodes():
            if facts["Alive"]:
                has = facts["Resources"]
                name = facts["NodeManagerHostname"]
                found.append(Node(facts["NodeID"], name, int(has.get("CPU", 0)), int(has.get("GPU", 0))))
        return sorted(found, key=lambda node: node.id)

    def on(self, node: Node, soft: bool = False) -> dict[str, Any]:
        """Options that place a task or an actor on a machine; ``soft``: on another one if that is gone."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node.id, soft=soft)}

    def check_versions(self) -> None:
        """Ask every machine what it runs.

        Raises:
            UserError: one runs other versions than this process, has no splip, or does not answer.
        """
        ray = import_ray()
        own = Versions(platform.python_version(), ray.__version__, splip.__version__)
        nodes = self.nodes()
        asked = {
            node: ray.remote(num_cpus=0, max_retries=0)(_probe()).options(**self.on(node)).remote() for node in nodes
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_SECONDS)
        for node, answer in asked.items():
            try:
                found = Versions(*ray.get(answer, timeout=0))
            except ray.exceptions.GetTimeoutError:
                raise UserError(f"{node}: starts no process within {PROBE_SECONDS:.0f} s") from None
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.TaskUnschedulableError) or node not in self.nodes():
                    continue  # it has gone meanwhile
                raise UserError(f"{node}: cannot run splip: {last_line(error)}") from None
            if found != own:
                raise UserError(f"{node} runs {found}, this process {own}: install the same everywhere")


def _probe() -> Callable[[], tuple[str, str, str]]:
    """A function that Ray sends as it is: a machine with another splip would not find it under its name."""

    def versions() -> tuple[str, str, str]:
        import platform

        import ray

        try:
            import splip

            installed = getattr(splip, "__version__", "without a version")
        except ImportError:
            installed = "not installed"
        return platform.python_version(), ray.__version__, installed

    return versions


def import_ray() -> Any:
    """The ``ray`` package, told not to report its use to its makers.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # For the processes of a cluster that is started here: threads that spin while they wait take cores from others.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # What other processes print, and the end of a dead node's log, would go to our standard output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # Without, a warning about a coming change of Ray's own, on every connection.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine ray needs Ray, which is not installed: pip install 'splip[ray]'") from None
    return ray


def last_line(error: BaseException) -> str:
    """What an error of Ray's says, without the traceback of the other process and without advice."""
    cause = getattr(error, "cause", None)
    lines = str(error if cause is None else cause).strip().splitlines() or [type(error).__name__]
    return lines[0 if cause is None else -1].strip()


@contextlib.contextmanager
def if_asked(config: RaySettings) -> Iterator[Cluster | None]:
    """A connection for a command with ``--engine ray``; None for others.

    Raises:
        UserError: as :func:`connect`, or an option that only ``--engine ray`` has a use for.
    """
    if config.engine == "ray":
        with connect(config.address) as cluster:
            yield cluster
        return
    for field in dataclasses.fields(config):
        if field.name in OPTIONS and getattr(config, field.name) != field.default:
            raise UserError(f"--{field.name} goes with --engine ray")
    yield None


@contextlib.contextmanager
def connect(address: str = "auto") -> Iterator[Cluster]:
    """A connection to a cluster whose machines all run the versions of this process.

    A connection that this process has already is used, and left open.

    Args:
        address: auto: the cluster that this machine belongs to; local: a new one of this machine alone, which ends with
            the connection; else HOST:PORT of a cluster's head, to which this machine must belong.

    Raises:
        UserError: no Ray, no cluster there, or versions that differ.
    """
    ray = import_ray()
    with contextlib.ExitStack() as undo:
        if not ray.is_initialized():
            _open(ray, address)
            undo.callback(ray.shutdown)
        cluster = Cluster(address)
        cluster.check_versions()
        yield cluster


def _open(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": STORE, "num_cpus": len(os.sched_getaffinity(0))}
    elif address != "auto":
        _reach(address)
    try:
        try:
            ray.init(address=address, **options)
        except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
            # One of its own processes was late: on a busy machine Ray does not wait long, and the next start is quicker.
            if address != "local" or "imed out" not in str(error):
                raise
            ray.shutdown()
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        text = " ".join(str(error).split())
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(f"this machine belongs to no Ray cluster: {HOW}") from None
        if "ersion mismatch" in text:
            raise UserError(f"the cluster at {address} runs other versions: {text}") from None
        token = (
            "" if os.environ.get("RAY_AUTH_MODE") == "token" else "; if it asks for a token, set RAY_AUTH_MODE=token"
        )
        raise UserError(f"cannot join the Ray cluster at {address}: {text}{token}") from None


def _reach(address: str) -> None:
    """Try the address before Ray does, which takes minutes to give up.

    Raises:
        UserError: not HOST:PORT, or no gRPC server answers there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise UserError(f"--address must be auto, local or HOST:PORT, got '{address}'")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(GREETING)
            if connection.recv(9)[3:4] != SETTINGS:
                raise ConnectionError("a server of another kind answers there")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"no Ray cluster at {address}: {reason}; {HOW}") from None
