"""``splip serve``: the process around the service: its gallery, socket, signals and end."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import threading
import warnings
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from splip.errors import UserError
from splip.serve.config import ServeConfig

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

CONNECTIONS = 1024
KEEP_ALIVE = 15  # seconds that an idle connection stays open
MIN_TOKEN = 16


def serve(config: ServeConfig) -> int:
    """Serve until SIGINT or SIGTERM; then finish what was begun."""
    # torch is not loaded yet. Its threads would spin while they wait, on the cores that read requests.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from splip.serve import app, metrics, middleware, service
    except ModuleNotFoundError as error:
        raise UserError(f"splip serve needs {error.name}: pip install 'splip[serve]'") from None
    from splip.cluster import ray, shards
    from splip.gallery.gallery import Gallery
    from splip.images.formats import suffixes
    from splip.milvus.address import is_address

    suffixes()  # and with it HEIC, if Pillow can read it here
    check(config)
    token = read_token(config.token_file) if config.token_file else None
    if config.protect == "all" and token is None:
        raise UserError("--protect all needs a token: --token-file")
    if config.allow_root and token is None:
        raise UserError("--allow-root needs a token: --token-file")
    if config.allow_root and is_address(config.gallery):
        raise UserError("--allow-root: pictures are added to the gallery of a folder, and pushed to a collection")
    metrics.set_up_logs(config.log)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged pictures, which get their answer
    with listen(config.host, config.port) as listener, ray.if_asked(config) as machines:
        gallery = shards.open_asked(config, machines)
        try:
            encoder = gallery.encoder

            def writer() -> Gallery:
                return Gallery.open(config.gallery, write=True, encoder=encoder)

            served = service.Service(gallery, config, None if is_address(config.gallery) else writer)
            application = app.create(served, token)
            port = listener.getsockname()[1]
            host = f"[{config.host}]" if ":" in config.host else config.host
            if not middleware.is_loopback(config.host) and (token is None or config.protect != "all"):
                metrics.log.warning(
                    "everybody who reaches %s:%d can search and see the pictures; "
                    "--token-file FILE --protect all asks for a token", host, port,
                )  # fmt: skip
            if config.show_paths is None and not middleware.is_loopback(config.host):
                metrics.log.warning("answers leave out the pictures' folders; --show-paths includes them")
            print(f"{config.gallery}: {len(gallery)} pictures, {encoder.name}, {encoder.engine} {encoder.precision}")
            print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
            if config.open:
                open_browser(config.host, port)
            run(application, listener, config)
        finally:
            gallery.close()
    return 0


def open_browser(host: str, port: int) -> None:
    """Open the page in a browser; a browser in the terminal would stop the service, so it waits elsewhere."""
    seen = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    threading.Thread(target=webbrowser.open, args=(f"http://{seen}:{port}",), daemon=True).start()


def check(config: ServeConfig) -> None:
    """Refuse settings that cannot work."""
    for name, low in (("window_ms", 0), ("refresh_s", 0.05), ("timeout_s", 0.1), ("body_timeout_s", 0.1)):
        if not low <= getattr(config, name) <= 3600:
            raise UserError(f"--{name.replace('_', '-')} must be between {low:g} and 3600")
    if not 0 <= config.port <= 65535:  # the system would take the remainder
        raise UserError(f"--port must be between 0 and 65535, got {config.port}")
    for name in ("max_batch", "max_queue", "max_k", "max_queries", "max_body_mb", "max_megapixels"):
        if getattr(config, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above zero")
    for name in ("threads", "max_per_client"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be above zero")
    for root in config.allow_root:
        if not root.is_dir():
            raise UserError(f"--allow-root {root}: no such folder")
    for origin in config.cors:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise UserError(f"--cors {origin}: write an origin, e.g. https://example.org")


def read_token(path: Path) -> str:
    """The token in a file that only its owner can read.

    Raises:
        UserError: not there, too short, or open to others.
    """
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UserError(f"--token-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--token-file {path}: not a text of ASCII characters") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"--token-file {path}: others can read it; chmod 600 it")
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        raise UserError(f"--token-file {path}: a token is one word of {MIN_TOKEN} or more characters")
    return token


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket.

    Raises:
        UserError: the address is taken, not ours, or not an address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named: else asyncio does not know TCP when it sees it, leaves Nagle's algorithm on, and
        # every answer waits 40 ms for an acknowledgement.
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            undo.pop_all()
    except (OSError, OverflowError) as error:
        code = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(code) if code is not None and code > 0 else str(error)
        raise UserError(f"cannot listen on {host}:{port}: {reason}") from None
    with listener:
        yield listener


def settings(application: "ASGIApp", config: ServeConfig) -> "uvicorn.Config":
    """How uvicorn is to run the application."""
    import uvicorn

    from splip.serve.connection import Connection

    return uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(config.timeout_s) + 5,
    )


def run(application: "ASGIApp", listener: socket.socket, config: ServeConfig) -> None:
    """Run uvicorn on the socket until a signal ends it."""
    import uvicorn

    class Server(uvicorn.Server):
        """Ends with the exit code of success: a service that was asked to stop did not fail."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            with super().capture_signals():
                try:
                    yield
                finally:
                    self._captured_signals.clear()

    server = Server(settings(application, config))

    def was_cut_off(record: logging.LogRecord) -> bool:
        return server.force_exit and "CancelledError" in record.getMessage()

    # Ctrl-C for the second time ends it in the middle of its end, which is what was asked for.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not was_cut_off(record))
    asyncio.run(server.serve(sockets=[listener]))
