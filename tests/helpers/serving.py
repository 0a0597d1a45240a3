"""A small gallery of drawn shapes behind a real server in a thread, for the tests of the service and its page."""

import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import uvicorn
from drawing import draw

from splip import images
from splip.encoders import explanation
from splip.errors import UserError
from splip.gallery.catalog import Item
from splip.gallery.matches import Match
from splip.images import archive, decode
from splip.serve import app, process
from splip.serve.config import ServeConfig
from splip.serve.service import Service

SHAPES = ["ball", "box", "slash", "dash", "cone", "pole"]
TOKEN = "a-token-for-the-tests-only"


def unit(rows):
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class FakeEncoder:
    """Where the ink is, on a grid of 8 by 8: enough to tell six shapes apart."""

    path, engine, precision, name, identity = Path("fake"), "fake", "fp32", "fake (shapes)", "0" * 64
    image_size, embed_dim, dimensions, fit, crop_sketches = 32, 64, (12, 16, 64), "pad", True
    explains_by = "removal"

    def __init__(self):
        self.batches = []  # sizes of the batches that were encoded
        self.hold = threading.Event()  # encoding waits while it is cleared
        self.hold.set()

    def settle(self):
        """It has no threads to choose."""
        return 0

    def prepare(self, image, modality):
        rows, columns = np.nonzero(np.asarray(image).min(axis=2) < 200)
        if len(rows):
            image = image.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        return images.square(image, self.image_size)

    def encode(self, pixels, modality):
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (32, 32, 3)
        self.batches.append(len(pixels))
        assert self.hold.wait(30)
        dark = 1 - pixels.min(axis=3).reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) / 255
        return unit(dark.reshape(-1, 64) - dark.mean(axis=(1, 2))[:, None])

    def encode_text(self, texts, modality="photo"):
        """A text is a shape's name, and means what that shape looks like."""
        for text in texts:
            if len(text) > 300:
                raise UserError("text: too long for this model")
        return np.stack([self.meanings.get(text, np.eye(64, dtype=np.float32)[0]) for text in texts])

    def unknown_words(self, texts):
        return [text for text in texts if text not in self.meanings]

    def explain_query(self, vector, photo, query=None, modality="sketch", check=lambda: None):
        def share(pixels, kind, towards):
            return explanation.by_removal(lambda batch: self.encode(batch, kind), pixels, towards, check=check)

        of_photo = share(photo, "photo", vector)
        of_query = None if query is None else share(query, modality, self.encode(photo[None], "photo")[0])
        return explanation.Explanation(of_photo.score, of_photo, of_query)

    def box(self, image):
        return explanation.box(image, self.image_size, self.fit)

    def close(self):
        pass


class FakeGallery:
    """What the service needs of a gallery, in memory."""

    def __init__(self, folder):
        self.encoder = FakeEncoder()
        self.cutoffs = {}  # by the kind of query
        self.items, self.vectors = {}, {}
        for number in range(24):
            kind, i = number % 6, number // 6
            path = folder / SHAPES[kind] / f"photo {i}.jpg"
            draw(path, kind, "blue" if i % 2 else "black", i, size=(64, 56))
            self.put(number + 1, path, SHAPES[kind], {"colour": "blue" if i % 2 else "black"})
        means = {s: [v for n, v in self.vectors.items() if self.items[n].label == s] for s in SHAPES}
        self.encoder.meanings = {shape: unit(np.mean(rows, axis=0)[None])[0] for shape, rows in means.items()}

    def put(self, id, path, label, tags):
        self.items[id] = Item(id, path, label, tags, *archive.facts(path), b"%d" % id, 0, id)
        self.vectors[id] = self.encoder.encode(self.encoder.prepare(images.read(path), "photo")[None], "photo")[0]

    def __len__(self):
        return len(self.items)

    def labels(self):
        found = [item.label for item in self.items.values() if item.label]
        return {label: found.count(label) for label in found}

    def refresh(self):
        return False

    def item(self, id):
        return self.items[id]

    def vector(self, id):
        return self.vectors[id]

    def search_vectors(self, vectors, k=10, filter=None):
        filters = filter if isinstance(filter, list) else [filter] * len(vectors)
        answers = []
        for vector, one in zip(vectors, filters, strict=True):
            found = []
            for id, item in self.items.items():
                if one and one.labels and item.label not in one.labels:
                    continue
                if one and any(item.tags.get(key) != value for key, value in one.tags.items()):
                    continue
                found.append(Match.of(item, float(vector @ self.vectors[id])))
            answers.append(sorted(found, key=lambda match: (-match.score, match.id))[:k])
        return answers

    def cutoff(self, kind, filter=None):
        return None if filter or kind is None else self.cutoffs.get(kind)

    def reading(self, modality):
        return None, decode.DECODING

    def add(self, paths, label=None, tags=None):
        for path in paths:
            self.put(max(self.items) + 1, path, label, dict(tags or {}))
        return SimpleNamespace(new=len(paths), duplicates=0, moved=0, changed=0, relabelled=0, unchanged=0, skipped=[])

    def remove(self, ids):
        return [self.items.pop(id) for id in ids if id in self.items]

    def close(self):
        pass


def real_gallery(folder):
    """Make ``gallery`` in a folder: drawn shapes, embedded by an untrained model; returns the folder."""
    import torch

    from splip.gallery.gallery import Gallery
    from splip.gallery.ingest import Picture
    from splip.models import build
    from splip.models.config import BackboneConfig, TrainConfig

    torch.manual_seed(0)
    model = build(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), SHAPES)
    torch.save(model.checkpoint(), folder / "best.pt")
    pictures = []
    for number in range(18):
        path = folder / "photos" / f"{number}.png"
        draw(path, number % 6, "blue", number, size=(64, 64))
        pictures.append(Picture(path, SHAPES[number % 6], {"third": str(number // 6)}))
    with Gallery.create(folder / "gallery", folder / "best.pt") as gallery:
        gallery.add(pictures)
    return folder


@contextmanager
def running(gallery, token=None, wait=True, writer=None, **settings):
    """A server in a thread; yields a client with the attributes ``service``, ``guard`` and ``address``."""
    config = ServeConfig(gallery=Path("unused"), port=0, **settings)
    process.check(config)
    with process.listen(config.host, 0) as listener:
        service = Service(gallery, config, writer or (lambda: gallery))
        guard = app.create(service, token)
        server = uvicorn.Server(process.settings(guard, config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, timeout=30) as client:
                client.service, client.guard, client.address = service, guard, address
                end = time.monotonic() + 30
                while wait and client.get("/readyz").status_code != 200:
                    assert time.monotonic() < end, "the service does not become ready"
                    time.sleep(0.02)
                yield client
        finally:
            if hasattr(gallery.encoder, "hold"):
                gallery.encoder.hold.set()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def sketch(kind="box", size=(64, 56)):
    """The bytes of a drawn shape, PNG."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sketch.png"
        draw(file, SHAPES.index(kind), "black", 2, size)
        return file.read_bytes()


BOX = {"strokes": [[[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]], "stroke_width": 4}
BOX_SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 50 50"><rect x="5" y="5" width="40" height="40" fill="none" stroke="#000" stroke-width="4"/></svg>'
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def found(answer):
    assert answer.status_code == 200, answer.text
    return [match["label"] for match in answer.json()["matches"]]


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
    assert set(answer.json()) == {"error", "message"}
    return answer.json()["message"]


def metric(client, name):
    """The value of a metric, its labels included in the name."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0.0


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
