"""Pictures into a gallery by workers on a Ray cluster: they embed, the front commits.

The front hands out runs of pictures. A worker, a Ray actor with the model loaded, reads, hashes, decodes and encodes
them as :mod:`splip.gallery.ingest` does, and writes a segment to ``incoming/`` of the gallery's folder, which all machines must
share: float rows as in :mod:`splip.gallery.segments`, then a manifest with their checksum, the model's identity and what was
seen of every picture. Neither changes afterwards. The front compares the checksums, commits the segment with the rules
of :mod:`splip.gallery.ingest`, and removes it. Only the front writes the gallery, which is like any other afterwards.

A segment with a manifest is never made again, whoever is killed: the next run begins by committing what it finds.
Pictures of a worker that died go to others; where no one is left to start, the last ones are handed out twice, and the
first answer counts. A machine that cannot write, or has another model, is left out.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from splip.cluster.front import Front
from splip.cluster.incoming import FOLDER, Segment, commit_segment
from splip.cluster.ray import Cluster
from splip.cluster.work import Embedded, Works
from splip.errors import UserError
from splip.gallery.gallery import Gallery
from splip.gallery.ingest import Added, Picture
from splip.gallery.protocol import Writable
from splip.gallery.segments import Segments
from splip.models.names import absolute

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder


def add(
    gallery: Gallery,
    pictures: Iterable[Picture | Path | str],
    cluster: Cluster,
    *,
    workers: int | None = None,
    encoder: str = "auto",
    device: str = "auto",
    label: str | None = None,
    tags: Mapping[str, str] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    segment_pictures: int | None = None,
    load: "Callable[[], Encoder] | None" = None,
    notify: Callable[[Added], None] | None = None,
    tell: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Embedded:
    """Embed pictures on the machines of a cluster and keep them; see :func:`splip.gallery.ingest.add` for what is kept.

    Args:
        gallery: open for writing, in a folder that all machines see under the same path, as the pictures.
        pictures: files, also those in tar files; may be more than fit in memory.
        cluster: connected.
        workers: None: one for each GPU; without a GPU, one for each machine with all its processors.
        encoder: what encodes, see :class:`splip.encoders.encoder.Encoder`.
        device: of the workers: cpu, cuda; auto takes GPUs if there are any.
        label: of pictures that bring none.
        tags: of all pictures, besides their own.
        batch_size: pictures a pass of the encoder.
        threads: of a worker; None: as many as it has processors.
        segment_pictures: pictures a segment; None: as many as a worker does in some 20 seconds.
        load: makes a worker's encoder; None: from the gallery's model.
        notify: is called after every commit.
        tell: is called with each of the troubles, a line, when it comes.
        stop: asked twice a second; True ends the work with what is on the way.

    Raises:
        UserError: the gallery cannot be written, or no worker can go on; what was committed before stays.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    given = (one if isinstance(one, Picture) else Picture(one) for one in pictures)
    wanted = (Picture(p.path, p.label if p.label is not None else label, {**(tags or {}), **p.tags}) for p in given)
    if load is None:
        from splip.encoders.encoder import Encoder

        source = absolute(gallery.model_source())
        load = partial(Encoder.load, source, encoder, device=device, dimensions=gallery.dim)
    done, began = Embedded(), time.monotonic()
    with gallery.writing():
        recover(gallery, done, tell)
        folder = gallery.folder.absolute() / FOLDER / uuid.uuid4().hex
        folder.mkdir(parents=True)
        works = Works(gallery, wanted, done, batch_size, segment_pictures)
        front = Front(gallery, works, cluster, done, notify, tell)
        try:
            front.start(workers, device, threads, folder, load)
            front.run(stop)
        finally:
            front.close()
        # Only now: what an error leaves behind is for the next run to commit.
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
        gallery.write_packs()
    done.seconds = time.monotonic() - began
    return done


def recover(gallery: Writable, done: Embedded, tell: Callable[[str], None] | None = None) -> None:
    """Commit the segments that an earlier run left, and remove what it did not finish. For the writer only."""
    before = Added()
    for folder in sorted((gallery.folder / FOLDER).glob("*/")):
        for path in sorted(folder.glob("*.json")):
            try:
                segment = Segment.read(Segments(folder, gallery.dim), int(path.stem), gallery.identity)
            except (UserError, OSError) as error:
                done.troubles.append(f"{error}; its pictures are embedded again")
                if tell is not None:
                    tell(done.troubles[-1])
                continue
            commit_segment(gallery, segment, before, None)
            done.recovered += len(segment.looks)
        shutil.rmtree(folder)
    done.skipped += before.skipped
