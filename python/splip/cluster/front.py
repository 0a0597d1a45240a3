"""The front of a cluster that embeds: hands out pictures, commits what comes back, and replaces workers that die."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splip.cluster.incoming import Segment, commit_segment, manifest_path
from splip.cluster.ray import Cluster, Node, import_ray, last_line
from splip.cluster.work import POLL, Embedded, Work, Works
from splip.cluster.worker import Task, Worker
from splip.errors import UserError
from splip.gallery.ingest import Added
from splip.gallery.protocol import Writable
from splip.gallery.segments import Segments

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

AHEAD = 2  # runs of pictures that a worker is given at once
ROOM_SECONDS = 300.0  # without any worker, until the cluster is taken to have no room for one
DEATHS = 20  # workers that may die in a row without a segment between


@dataclass(eq=False)
class Hand:
    """A worker as the front sees it."""

    number: int
    node: Node | None  # None: wherever there is room
    actor: Any
    ready: bool = False
    given: dict[Any, tuple[int, Work]] = field(default_factory=dict)  # by Ray's reference: the segment's number


class Front:
    """Hands out pictures, commits what comes back, and replaces workers that die.

    Args:
        gallery: open for writing.
        works: what is to be embedded.
        cluster: connected.
        done: counts.
        notify: is called after every commit.
        tell: is called with each of the troubles, a line, when it comes.
    """

    def __init__(
        self,
        gallery: Writable,
        works: Works,
        cluster: Cluster,
        done: Embedded,
        notify: Callable[[Added], None] | None,
        tell: Callable[[str], None] | None,
    ) -> None:
        self.gallery, self.works, self.cluster = gallery, works, cluster
        self.done, self.notify, self.tell = done, notify, tell
        self.ray = import_ray()
        self.hands: dict[int, Hand] = {}
        self.starting: dict[Any, Hand] = {}  # by the reference of their answer
        self.numbers = iter(range(1, 1 << 62))  # of workers and segments
        self.deaths = 0  # in a row
        self.began = self.idle = time.monotonic()

    # ---- workers ----

    def start(
        self, workers: int | None, device: str, threads: int | None, folder: Path, load: "Callable[[], Encoder]"
    ) -> None:
        """Decide how many workers there are and where, and start them.

        Raises:
            UserError: the cluster has no room for them.
        """
        nodes = [node for node in self.cluster.nodes() if node.cpus]
        gpus = sum(node.gpus for node in nodes) if device != "cpu" else 0
        if device.startswith("cuda") and not gpus:
            raise UserError(f"--device {device}: the cluster has no GPU")
        if gpus:
            nodes = [node for node in nodes if node.gpus]
        count = workers or gpus or len(nodes)
        if not nodes:
            raise UserError("the cluster has no processors to work with")
        if not gpus and count > sum(node.cpus for node in nodes):
            raise UserError(f"--workers {count}: the cluster has {sum(node.cpus for node in nodes)} processors")
        # As many workers on each machine as it has room for, and its processors shared out among them.
        each = -(-count // len(nodes))
        cpus = max(1, min(node.cpus for node in nodes) // each)
        self.resources: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0}
        if gpus:
            self.resources["num_gpus"] = min(1.0, gpus / count)
        self.folder = folder
        gallery, probe = self.gallery, self.works.probe()
        self.task = Task(
            folder, gallery.dim, gallery.identity, load, self.works.batch_size, threads or cpus, probe, gallery.decoding
        )
        self.shared = self.ray.put(self.task)
        self.done.workers = count
        for number in range(count):
            self.hire(nodes[number % len(nodes)])

    def hire(self, node: Node | None) -> None:
        """Start a worker, on a machine or wherever there is room."""
        number = next(self.numbers)
        options = self.cluster.on(node, soft=True) if node is not None else {"scheduling_strategy": "SPREAD"}
        name = str(node) if node is not None else "a machine of the cluster"
        actor = self.ray.remote(Worker).options(**options, **self.resources).remote(self.shared, name)
        hand = Hand(number, node, actor)
        self.starting[actor.load.remote()] = hand

    def bury(self, hand: Hand, reason: str | None) -> None:
        """A worker is no more; its pictures go to others. Without a reason it died, and another takes its place."""
        self.hands.pop(hand.number, None)
        for place, (_, work) in enumerate(hand.given.values()):
            work.holders.discard(hand.number)
            if reason is None and not place:  # what waited behind the first is innocent
                work.deaths += 1
            if not work.done and not work.holders:
                self.done.again += 1
                self.works.divide(work)
        hand.given.clear()
        self.kill(hand)
        if reason is not None:
            return self.trouble(reason)
        self.done.died += 1
        self.deaths += 1
        if self.deaths >= DEATHS:
            raise UserError(
                f"{self.deaths} workers died one after the other; Ray's logs say more; run it again to go on"
            )
        self.hire(None)

    # ---- work ----

    def run(self, stop: Callable[[], bool] | None) -> None:
        """Until everything is committed, or stopped.

        Raises:
            UserError: nobody can go on.
        """
        while True:
            self.hand_out()
            flying = {ref: hand for hand in self.hands.values() for ref in hand.given}
            left = any(not work.done for hand in self.hands.values() for _, work in hand.given.values())
            if not left and not self.works.waiting():
                return
            if not self.hands and not self.starting:
                raise UserError(f"no worker can go on; the last one: {self.done.troubles[-1]}")
            self.idle = self.idle if not self.hands else time.monotonic()
            if time.monotonic() - self.idle > ROOM_SECONDS:
                raise UserError(f"the cluster has no room for a worker with {self.resources['num_cpus']} processors")
            waited = [*flying, *self.starting]
            self.ray.wait(waited, num_returns=1, timeout=POLL)
            # All that are ready, in the order in which they were handed out: what a worker did before it died counts.
            ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)
            for ref in ready:
                if ref in self.starting:
                    self.welcome(ref)
                elif flying[ref].number in self.hands:  # not buried a moment ago
                    self.land(flying[ref], ref)
            if stop is not None and not self.works.stopping and stop():
                self.done.stopped = self.works.stopping = True

    def welcome(self, ref: Any) -> None:
        """Take what a worker answers that was started."""
        hand = self.starting.pop(ref)
        try:
            reason = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{hand.node or 'a worker'}: {last_line(error)}"
        except self.ray.exceptions.RayError:
            return self.bury(hand, None)
        if reason is not None:
            return self.bury(hand, reason)
        if not self.done.start_seconds:
            self.done.start_seconds = time.monotonic() - self.began
        hand.ready = True
        self.hands[hand.number] = hand

    def land(self, hand: Hand, ref: Any) -> None:
        """Take what a worker answers."""
        number, work = hand.given[ref]
        try:
            reason, seconds, encode_seconds = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{hand.node or 'a worker'}: {last_line(error)}"
        except self.ray.exceptions.RayError:
            return self.bury(hand, None)
        if reason is not None:
            return self.bury(hand, reason)
        del hand.given[ref]
        work.holders.discard(hand.number)
        if work.done:
            return
        files = Segments(self.folder, self.gallery.dim)
        try:
            segment = Segment.read(files, number, self.gallery.identity)
        except (UserError, OSError) as error:
            self.trouble(f"{error}; its pictures are embedded again")
            work.deaths += 1
            self.works.divide(work)
            return
        self.deaths = 0
        self.works.finished(work, seconds, len(segment.rows))
        self.done.seen += len(work.entries)
        self.done.encoded += len(segment.rows)
        self.done.encode_seconds += encode_seconds
        self.done.seconds = time.monotonic() - self.began
        commit_segment(self.gallery, segment, self.done, self.notify)
        files.rows_path(number).unlink(missing_ok=True)
        manifest_path(self.folder, number).unlink(missing_ok=True)

    def hand_out(self) -> None:
        """Keep every worker busy."""
        for depth in range(AHEAD):
            for hand in self.hands.values():
                if len(hand.given) > depth:
                    continue
                work = self.works.take() or self.straggler(hand)
                if work is not None:
                    self.give(hand, work)

    def give(self, hand: Hand, work: Work) -> None:
        work.began = work.began or time.monotonic()
        work.holders.add(hand.number)
        number = next(self.numbers)
        hand.given[hand.actor.embed.remote(number, work.entries)] = number, work

    def straggler(self, hand: Hand) -> Work | None:
        """Work that another worker takes too long for, if this one has nothing else to do."""
        if hand.given:
            return None
        work = self.works.late(work for other in self.hands.values() for _, work in other.given.values())
        if work is not None:
            self.done.again += 1
        return work

    # ---- the end ----

    def trouble(self, line: str) -> None:
        self.done.troubles.append(line)
        if self.tell is not None:
            self.tell(line)

    def kill(self, hand: Hand) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(hand.actor)

    def close(self) -> None:
        for hand in [*self.hands.values(), *self.starting.values()]:
            self.kill(hand)
