"""``splip mcp``: the process around the tools for assistants (:mod:`splip.serve.tools`)."""

import importlib.metadata
import logging

from splip.errors import UserError
from splip.serve.config import McpConfig


def mcp(config: McpConfig) -> int:
    """``splip mcp``: until stdin ends."""
    try:
        from mcp.server import MCPServer as _  # noqa: F401

        from splip.serve import process, tools
    except ModuleNotFoundError as error:
        raise UserError(f"splip mcp needs {(error.name or '').split('.')[0]}: pip install 'splip[mcp]'") from None
    except ImportError:
        there = importlib.metadata.version("mcp")
        raise UserError(f"splip mcp needs mcp 2 or later, here is {there}: pip install 'splip[mcp]'") from None
    if config.token_file is not None and config.url is None:
        raise UserError("--token-file is for the service of --url; a gallery's folder needs no token")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    if config.url is not None:
        from splip.client import Client

        token = process.read_token(config.token_file) if config.token_file else None
        with Client(config.url, token=token) as client:
            tools.server(tools.Remote(client)).run("stdio")
        return 0
    from splip.milvus import open_gallery

    with open_gallery(config.gallery, engine=config.engine, device=config.device, model=config.model) as gallery:
        backend = tools.Local(gallery)
        try:
            tools.server(backend).run("stdio")
        finally:
            backend.renderer.close()
    return 0
