"""What the service says about itself: Prometheus metrics and a line for every request.

Neither holds anything of a query: no text, no labels, no file names, no query strings.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

STAGES = ("decode", "prepare", "wait", "encode", "search", "lookup", "explain")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

log = logging.getLogger("splip.serve.process")


class Telemetry:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "splip_requests", "Requests by route and status.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "splip_request_seconds", "Time of requests.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.refused = Counter(
            "splip_refused", "Requests refused, by the error's code.", ["code"], registry=self.registry
        )
        self.queued = Gauge("splip_queue_length", "Searches taken on and not yet answered.", registry=self.registry)
        self.items = Gauge("splip_gallery_items", "Pictures in the gallery.", registry=self.registry)
        self.batch = Histogram(
            "splip_batch_size", "Searches per batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=self.registry
        )
        stage = Histogram(
            "splip_stage_seconds", "Time of a search by stage.", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.stages = {name: stage.labels(name) for name in STAGES}
        self.worker_ends = Counter(
            "splip_worker_ends", "Times that the worker of the batches ended and was started again.",
            registry=self.registry,
        )  # fmt: skip
        self.thumbnails = Counter("splip_thumbnails", "Thumbnails by source.", ["source"], registry=self.registry)

    def stage(self, name: str, seconds: float) -> None:
        self.stages[name].observe(seconds)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Lines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        line = (
            f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()}: {record.getMessage()} {fields}".rstrip()
        )
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class StandardError(logging.StreamHandler):
    """Writes to what is standard error at that moment: a program that embeds the service may put another in its place."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass


def set_up_logs(form: Literal["text", "json"]) -> None:
    """Send this service's and uvicorn's lines to stderr; for people without the requests that went well."""
    handler = StandardError()
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    if form == "text":
        handler.addFilter(lambda record: getattr(record, "fields", {}).get("status", 500) >= 400)
    for name, level in (("splip.serve.process", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    if form == "json":  # and what others say: each line must be an object
        rest = StandardError(logging.WARNING)
        rest.setFormatter(JsonLines())
        logging.lastResort = rest
        logging.getLogger("py.warnings").handlers = [rest]
        logging.captureWarnings(True)
        threading.excepthook = lambda ended: _say("a thread ended", ended.exc_value)
        sys.excepthook = lambda _, error, __: _say("the service ended", error)
        sys.unraisablehook = lambda ignored: _say(ignored.err_msg or "an error was ignored", ignored.exc_value)


def _say(what: str, error: BaseException | None) -> None:
    log.error("%s", what, exc_info=error)


def timed(stages: dict[str, float], name: str) -> Callable[[], None]:
    """Start a stage; call what it returns to end it."""
    began = time.perf_counter()

    def end() -> None:
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - began

    return end
