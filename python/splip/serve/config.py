"""Settings of `splip serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from splip.gallery.config import Address, default_address


@dataclass
class ServeConfig:
    """Serve a gallery over HTTP, with a page to draw on."""

    gallery: Address = field(default_factory=default_address)
    """Folder that `splip index add` wrote, or the milvus: address of a collection, see `splip index push`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 and :: are reachable from elsewhere."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    open: bool = False
    """Open the page in a browser of this machine."""
    engine: str = "auto"
    """What encodes the queries: torch, compile, onnxruntime, openvino, tensorrt; auto takes the best that is there. Or ray:
    the gallery is searched by the machines of a Ray cluster."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes the queries: auto, torch, compile, onnxruntime, openvino, tensorrt."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head; auto: the cluster that this machine belongs to; local: one made
    of this machine for as long as it serves."""
    shards: int | None = None
    """With --engine ray: parts of the gallery, each searched by a process of its own; none: one for each machine."""
    replicas: int = 1
    """With --engine ray: processes for each part; with two, one may die unnoticed."""
    model: str | None = None
    """The gallery's model by any other name, such as an export of it; none: the gallery's own."""
    token_file: Path | None = None
    """File with the API token, readable by its owner only; without one nothing can be added or removed."""
    protect: Literal["writes", "all"] = "writes"
    """What needs the token: adding and removing, or searching and looking too."""
    allow_root: tuple[Path, ...] = ()
    """Folders below which pictures may be added over HTTP; none: adding is off."""
    allow_host: tuple[str, ...] = ()
    """Names that the Host header may have; default: those of this machine when only it can connect, else any."""
    behind_proxy: bool = False
    """A proxy in front sets X-Forwarded-For and X-Forwarded-Proto: clients' addresses and TLS are known from them."""
    cors: tuple[str, ...] = ()
    """Origins of other sites whose pages may use the service, e.g. https://example.org."""
    window_ms: float = 3.0
    """Time that a search waits at most for others to be encoded with."""
    max_batch: int = 32
    """Searches that are encoded together; 1 turns batching off."""
    max_queue: int = 256
    """Searches on the way at once; further ones get 429."""
    max_per_client: int | None = None
    """How many of them may come from one address; further ones get 429; none: half of --max-queue."""
    timeout_s: float = 15.0
    """Time for the answer to a search; then 503."""
    body_timeout_s: float = 10.0
    """Time for a client to send its request's body; then 408."""
    max_body_mb: float = 14.0
    """Size of a request's body; above it 413. In JSON, 14 MB hold a picture of 10 MB (base64)."""
    max_megapixels: float = 40.0
    """Pixels of an uploaded picture, by its header; above it 413."""
    max_k: int = 200
    """Photos that a search may ask for."""
    max_queries: int = 64
    """Searches in one request to /v1/search/batch."""
    threads: int | None = None
    """Threads that decode pictures; none: one for each processor."""
    refresh_s: float = 2.0
    """How often the counts and labels are read anew."""
    show_paths: bool | None = None
    """Whether answers tell where a photo's file is; default: only when only this machine can connect."""
    thumbnails_mb: float = 64.0
    """Memory for thumbnails."""
    log: Literal["text", "json"] = "text"
    """Form of the lines on stderr; none of them holds anything of a query."""


@dataclass
class McpConfig:
    """Tools of the Model Context Protocol over stdin and stdout, with which an assistant searches a gallery and looks at its
    pictures. The program that runs the assistant starts this; nothing is changed, and paths of pictures are those of this machine."""

    gallery: Address = field(default_factory=default_address)
    """Folder that `splip index add` wrote, or the milvus: address of a collection, see `splip index push`."""
    url: str | None = None
    """Address of a running service to ask in place of a gallery, e.g. http://127.0.0.1:8000."""
    token_file: Path | None = None
    """With --url: file with the service's API token, readable by its owner only; for one that protects searches."""
    engine: str = "auto"
    """What encodes the queries: torch, compile, onnxruntime, openvino, tensorrt; auto takes the best that is there."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    model: str | None = None
    """The gallery's model by any other name, such as an export of it; none: the gallery's own."""
