"""A gallery over HTTP, with a page to draw on."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.serve.config import ServeConfig as ServeConfig
    from splip.serve.process import serve as serve
    from splip.serve.service import Service as Service

__getattr__, __dir__, __all__ = lazy(__name__, process="serve", service="Service", config="ServeConfig")
