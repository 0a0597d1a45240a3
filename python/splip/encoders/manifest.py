"""``export.json``: what an export folder holds. Imports neither torch nor an engine: it is read where encoders run."""

import dataclasses
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from splip import disk
from splip.errors import UserError, short
from splip.images import decode
from splip.models.names import EXPORT as FILE

FORMAT = 1
LARGEST = 16 << 20  # bytes of it
MOST_SIDE, MOST_WIDTH, MOST_BATCH = 4096, 65536, 65536  # more than any model has: what is read here becomes memory
MODALITIES = ("sketch", "photo")
INPUT, OUTPUT = "images", "features"
TOKENS, MODALITY = "tokens", "modality"  # what the text tower takes


class Batch(NamedTuple):
    """Images per call: an engine is built for min to max and tuned for opt."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str) -> "Batch":
        """``min:opt:max``, or one number for all three."""
        parts = text.split(":")
        if len(parts) in (1, 3) and all(p.isascii() and p.isdigit() for p in parts):
            low, best, high = (int(p) for p in (parts * 3 if len(parts) == 1 else parts))
            if 1 <= low <= best <= high:
                return cls(low, best, high)
        raise UserError(f"--batch must be min:opt:max with 1 <= min <= opt <= max, e.g. 1:8:64, got {text}")


@dataclass
class Built:
    """The files of one kind of engine."""

    files: dict[str, list[str]]
    """For each modality the file to load, and those it needs beside it."""
    precisions: list[str]
    """In which the files passed their verification, or were built: the fastest first."""
    status: str
    """verified; built, not run; or checked, not run."""
    fidelity: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each precision how near the features are to float32 PyTorch."""
    details: dict[str, Any] = field(default_factory=dict)
    """TensorRT: what it was built with and for."""


@dataclass
class Text:
    """The text tower of an export."""

    files: list[str]
    """An ONNX file, what it needs beside it, and the tokenizer's."""
    length: int
    """Most tokens of a text, with its end."""
    end: int
    """Id of the token that ends a text."""
    max_difference: float | None = None
    """From float32 PyTorch, over ``texts``."""
    texts: int = 0
    """How many it was verified with."""


@dataclass
class Manifest:
    """Everything that a machine without torch must know of a model."""

    format: int
    splip: str
    identity: str  # sha256, see splip.models.registry.identity
    name: str  # for people
    image_size: int
    embed_dim: int
    fit: decode.Fit
    crop_sketches: bool
    mean: list[float]
    std: list[float]
    fused: bool  # images are uint8 [B, S, S, 3], else normalised float32 [B, 3, S, S]
    batch: list[int]  # min, opt, max
    precision: str
    opset: int
    engines: dict[str, Built]
    sha256: dict[str, str]  # of every file
    model: dict[str, Any]  # method, backbone, prompts: for people
    verification: dict[str, Any]  # which pictures
    versions: dict[str, str]
    rejected: dict[str, Any] = field(default_factory=dict)  # files that failed their verification, and why
    text: Text | None = None
    dimensions: list[int] = field(
        default_factory=list
    )  # sizes that vectors may be cut to, embed_dim last; none: it alone

    def image_shape(self) -> list[int]:
        """Of one image, as the files take it."""
        S = self.image_size
        return [S, S, 3] if self.fused else [3, S, S]

    def save(self, folder: Path) -> None:
        dtype = "uint8" if self.fused else "float32"
        shapes = {
            "input": {"name": INPUT, "dtype": dtype, "shape": ["batch", *self.image_shape()]},
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", self.embed_dim]},
        }
        text = json.dumps(dataclasses.asdict(self) | shapes, indent=1)
        disk.write_text(folder / FILE, text + "\n")

    def check(self, folder: Path, engine: str) -> None:
        """Compare the engine's files with their hashes.

        Raises:
            UserError: a file is missing or is not the one that was exported.
        """
        self.check_files(folder, [name for files in self.engines[engine].files.values() for name in files])

    def check_files(self, folder: Path, names: Iterable[str]) -> None:
        """The same of some files."""
        for name in names:
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path}: is missing; {folder / FILE} lists it")
            if disk.file_hash(path) != self.sha256.get(name):
                raise UserError(f"{path}: damaged, or not the file that was exported (sha256 differs); export again")


def identity_at(identity: str, size: int | None) -> str:
    """A model's identity with vectors cut to ``size``: they cannot be compared with others. None: whole ones."""
    return identity if size is None else f"{identity}/{size}"


def model_hash(identity: str) -> str:
    """The sha256 of the checkpoint in an identity, see :func:`identity_at`."""
    return identity.partition("/")[0]


def is_export(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read(folder: Path) -> Manifest:
    """The manifest of an export folder.

    Raises:
        UserError: no export, damaged, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder}: not an export (no {FILE}); `splip export` makes one")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: damaged: {path.stat().st_size:,} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        form = values["format"]
        if form != FORMAT:
            raise UserError(f"{path}: export format {form}, this version reads {FORMAT}")
        known = {f.name for f in dataclasses.fields(Manifest)}
        values = {key: value for key, value in values.items() if key in known}
        values["engines"] = {name: Built(**built) for name, built in values["engines"].items()}
        if values.get("text") is not None:
            values["text"] = Text(**values["text"])
        about = Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {str(error)[:200]}") from None
    damage = _damage(about)
    if damage is not None:
        raise UserError(f"{path}: damaged: {damage}")
    return about


def _damage(about: Manifest) -> str | None:
    """What no export has, or None. The file may come from anywhere: it names files, and says how much memory to take."""

    def whole(value: object, most: int) -> bool:
        return type(value) is int and 1 <= value <= most

    def plain(name: object) -> bool:  # a file of this folder, and no other
        return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")

    def names(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(map(plain, value))

    def numbers(value: object, least: float) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 3
            and all(type(v) in (int, float) and least <= v <= 1e3 for v in value)
        )

    right = {
        "splip": isinstance(about.splip, str),
        "identity": isinstance(about.identity, str),
        "name": isinstance(about.name, str),
        "image_size": whole(about.image_size, MOST_SIDE),
        "embed_dim": whole(about.embed_dim, MOST_WIDTH),
        "fit": about.fit in typing.get_args(decode.Fit),
        "dimensions": isinstance(about.dimensions, list)
        and all(whole(size, MOST_WIDTH) for size in about.dimensions)
        and about.dimensions == sorted(set(about.dimensions))
        and about.dimensions[-1:] in ([], [about.embed_dim]),
        "crop_sketches": isinstance(about.crop_sketches, bool),
        "mean": numbers(about.mean, -1e3),
        "std": numbers(about.std, 1e-3),
        "fused": isinstance(about.fused, bool),
        "batch": isinstance(about.batch, list)
        and len(about.batch) == 3
        and all(whole(count, MOST_BATCH) for count in about.batch)
        and about.batch == sorted(about.batch),
        "precision": about.precision in ("fp32", "fp16", "bf16", "int8"),
        "opset": type(about.opset) is int,
        "sha256": isinstance(about.sha256, dict)
        and all(isinstance(v, str) for v in about.sha256.values())
        and all(map(plain, about.sha256)),
    }
    for part in ("model", "verification", "versions", "rejected"):
        right[part] = isinstance(getattr(about, part), dict)
    for name, good in right.items():
        if not good:
            return f"{name} is {short(getattr(about, name))}"
    for kind, built in about.engines.items():
        if not isinstance(built.files, dict) or not all(names(built.files.get(m)) for m in MODALITIES):
            return f"files of {short(kind)} are {short(built.files)}"
        if not all(map(names, built.files.values())):
            return f"files of {short(kind)} are {short(built.files)}"
        if not isinstance(built.precisions, list) or not all(isinstance(p, str) for p in built.precisions):
            return f"precisions of {short(kind)} are {short(built.precisions)}"
        if not isinstance(built.status, str) or not isinstance(built.fidelity, dict):
            return f"status of {short(kind)} is {short(built.status)}"
    text = about.text
    if text is None:
        return None
    if not names(text.files):
        return f"files of the text tower are {short(text.files)}"
    if not whole(text.length, MOST_WIDTH) or type(text.end) is not int or not 0 <= text.end < 2**31:
        return f"the text tower takes {short(text.length)} tokens that end with {short(text.end)}"
    return None
