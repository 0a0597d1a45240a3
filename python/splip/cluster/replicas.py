"""The processes that search shards, as the one sees them who asks: where they start, and what becomes of the dead."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splip.cluster.pieces import Told
from splip.cluster.ray import Cluster, Node, import_ray, last_line
from splip.cluster.shard import Shard
from splip.errors import UserError
from splip.gallery.segments import Segments

START_SECONDS = 300.0  # for the shards to be ready
TRIES = 3  # to start a shard, until the others begin without it
AGAIN_SECONDS = 2.0  # between two tries to start a shard that does not start

log = logging.getLogger("splip.serve.process")


@dataclass(eq=False)
class Replica:
    """A process that searches a shard, as the front sees it."""

    shard: int
    number: int
    actor: Any = None  # None: dead
    starting: Any = None  # Ray's reference of the answer that it is ready
    tried: float = 0.0  # when it was started last
    node: str = ""  # where it was started last
    avoid: str = ""  # a node that it was lost on
    failures: int = 0  # to start
    problems: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.actor is not None and self.starting is None


def place(replica: Replica, replicas: Sequence[Replica], nodes: Sequence[Node], on_gpu: bool) -> Node:
    """Where to start a process: not where it was lost, away from others of its shard, and where there are fewest."""
    others = [other for other in replicas if other.actor is not None]
    held = [other.node for other in others]
    twins = [other.node for other in others if other.shard == replica.shard]
    turn = replica.shard + replica.number

    def cost(number: int) -> tuple[bool, bool, int, int, int]:
        node = nodes[number]
        full = on_gpu and held.count(node.id) >= node.gpus  # there it would wait for one
        return full, node.id == replica.avoid, twins.count(node.id), held.count(node.id), (number - turn) % len(nodes)

    return nodes[min(range(len(nodes)), key=cost)]


class Replicas:
    """All processes of a gallery's shards.

    Args:
        cluster: connected.
        files: of the gallery, which all machines see under the same path.
        shards: how many.
        replicas: processes for each.
        on_gpu: each has a GPU for itself and searches there.
    """

    def __init__(self, cluster: Cluster, files: Segments, shards: int, replicas: int, on_gpu: bool) -> None:
        self._ray, self._cluster, self._files, self._on_gpu = import_ray(), cluster, files, on_gpu
        self.shards = shards
        self.all = tuple(Replica(s, r) for s in range(shards) for r in range(replicas))
        self.said: set[str] = set()  # lines about what could not be searched at some time
        self._turn = itertools.count()
        self._tending = threading.Lock()

    def start(self, told: Sequence[Told]) -> None:
        """Start the processes and wait until they can search.

        Raises:
            UserError: none of them starts.
        """
        end = time.monotonic() + START_SECONDS
        while True:
            self.tend(told)
            starting = [replica.starting for replica in self.all if replica.starting is not None]
            left = end - time.monotonic()
            if left <= 0 or not starting and all(r.alive or r.failures >= TRIES for r in self.all):
                break
            if starting:
                self._ray.wait(starting, num_returns=len(starting), timeout=left)
            else:
                time.sleep(0.1)  # one has just failed, and may be tried again soon
        if not any(replica.alive for replica in self.all):
            gallery = self._files.folder.parent
            raise UserError(f"no shard of {gallery} starts: {' '.join(sorted(self.said)) or 'no room on the cluster'}")

    def close(self) -> None:
        """End all processes."""
        for replica in self.all:
            self._kill(replica)
        self.all = ()

    def alive(self) -> list[int]:
        """Processes of each shard that can answer now."""
        return [sum(r.alive for r in self.all if r.shard == shard) for shard in range(self.shards)]

    def pick(self, shard: int) -> Replica | None:
        """A process that can answer for a shard, in turn; one with all of its rows if there is one."""
        alive = [replica for replica in self.all if replica.shard == shard and replica.alive]
        best = [replica for replica in alive if not replica.problems] or alive
        return best[next(self._turn) % len(best)] if best else None

    def tend(self, told: Sequence[Told]) -> None:
        """Start what is dead, and take in what has become ready."""
        if all(replica.alive for replica in self.all) or not self._tending.acquire(blocking=False):
            return
        try:
            nodes: list[Node] = []
            for replica in self.all:
                if replica.starting is not None:
                    self._look_at(replica)
                if replica.actor is None and time.monotonic() - replica.tried >= AGAIN_SECONDS:
                    nodes = nodes or self._nodes()
                    self._start(replica, nodes, told)
        finally:
            self._tending.release()

    def _nodes(self) -> list[Node]:
        return [node for node in self._cluster.nodes() if node.cpus] or self._cluster.nodes()

    def _start(self, replica: Replica, nodes: Sequence[Node], told: Sequence[Told]) -> None:
        """Start a process; replicas of a shard on different machines, as far as there are enough."""
        node = place(replica, self.all, nodes, self._on_gpu)
        replica.node = node.id
        threads = max(1, node.cpus // -(-len(self.all) // len(nodes)))
        # It asks for no processor of its own: searches are short, and work that is not may want all of them. Nowhere else
        # than there: with a softer wish Ray puts processes on the head while other machines are new, and leaves them there.
        options = self._cluster.on(node) | {"num_cpus": 0, "num_gpus": int(self._on_gpu), "max_restarts": 0}
        arguments = (
            self._files.folder.absolute(),
            self._files.dim,
            threads,
            "cuda" if self._on_gpu else "cpu",
            str(node),
        )
        replica.actor = self._ray.remote(Shard).options(**options).remote(*arguments)
        replica.starting = replica.actor.take.remote(told[replica.shard])
        replica.tried = time.monotonic()

    def _look_at(self, replica: Replica) -> None:
        ready, _ = self._ray.wait([replica.starting], timeout=0)
        if not ready:
            return
        try:
            replica.problems = self._ray.get(replica.starting)
            replica.starting, replica.failures = None, 0
            self.say(replica.problems)
        except self._ray.exceptions.RayError as error:
            replica.failures += 1
            # A machine that has just joined may refuse the first time.
            self.bury(replica, f"shard {replica.shard} does not start: {last_line(error)}", replica.failures % 2 == 0)

    def bury(self, replica: Replica, reason: str, avoid: bool = True) -> None:
        """Take note that a process is gone; ``avoid``: that its machine may be gone too is known only after a while."""
        self.say([reason])
        replica.avoid = replica.node if avoid else ""
        self._kill(replica)

    def _kill(self, replica: Replica) -> None:
        actor, replica.actor, replica.starting = replica.actor, None, None
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def say(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self.said:
                self.said.add(line)
                log.warning("%s", line)
