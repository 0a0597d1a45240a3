"""What the verbs that can run on a cluster say of it: the part of their settings that is read here."""

from typing import Any, ClassVar, Protocol


class RaySettings(Protocol):
    """Settings, a dataclass, of a verb with ``--engine ray``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    engine: str
    encoder: str
    address: str


class SearchSettings(RaySettings, Protocol):
    """Settings of a verb that searches; ``replicas``, if it has them, are processes for each shard."""

    gallery: str
    device: str
    model: str | None
    shards: int | None
