"""Which GELU the weights of a backbone were trained with: the exact one, or x * sigmoid(1.702 x), QuickGELU.

The tensors do not tell, and with the wrong one features are wrong and nothing fails. Tags are known to open_clip. Of
files, some say it: TorchScript archives in their code, files of this package in their metadata, and some through a
configuration beside them.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor

from splip.errors import UserError
from splip.models import hub, seeded
from splip.models.config import BackboneConfig
from splip.models.torchscript import is_archive, read_archive

FOLDER, HUB = "local-dir:", "hf-hub:"
OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers among the tensors of OpenAI's files
LARGEST = 1 << 20  # bytes of a JSON file
WORDS = {True: "QuickGELU", False: "GELU"}
SIZES = {
    "": ("embed_dim",),
    "vision_cfg": ("image_size", "layers", "width", "patch_size"),
    "text_cfg": ("context_length", "vocab_size", "layers", "width", "heads"),
}


class Found(NamedTuple):
    """What a weights file says of itself."""

    quick_gelu: bool | None = None
    why: str = ""
    state: dict[str, Tensor] | None = None  # where open_clip cannot read the file by itself
    words: str | None = None  # how word embeddings are made that the file leaves out


def brings_all(name: str) -> bool:
    """Whether a backbone's name is that of a folder or repository, with its architecture and its weights."""
    return name.startswith((FOLDER, HUB))


def folder_of(config: BackboneConfig) -> Path | None:
    """The folder that ``local-dir:`` names, as name or as weights, or where a repository of ``hf-hub:`` lies.

    Raises:
        UserError: it is named in a way that cannot be meant, or cannot be downloaded.
    """
    named, source = brings_all(config.name), config.pretrained or ""
    if named and source not in ("", "random", config.name):
        raise UserError(f"--backbone.name {config.name} brings its weights: leave out --backbone.pretrained {source}")
    if config.name.startswith(HUB):
        return hub.open_clip_folder(hub.Repository(config.name.removeprefix(HUB), config.revision))
    value = config.name if named else source
    if not value.startswith(FOLDER):
        return None
    if value == FOLDER:
        raise UserError(f"{FOLDER} needs the path of a folder after it")
    return Path(value.removeprefix(FOLDER))


def read_folder(folder: Path, config: BackboneConfig) -> dict[str, Any]:
    """The architecture that a folder describes, checked to hold weights and to be the one that was named.

    Raises:
        UserError: one line that says what is wrong with the folder.
    """
    file = folder / "open_clip_config.json"
    if not folder.is_dir():
        raise UserError(f"{FOLDER}{folder}: no such folder")
    if not file.is_file():
        raise UserError(f"{FOLDER}{folder}: no open_clip_config.json in it")
    values = _json(file)
    model = None if values is None else values.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise UserError(f"{file}: not JSON with an open_clip model_cfg")
    random = config.pretrained == "random"
    if not random and not any(p.suffix in (".safetensors", ".bin", ".pth") for p in folder.iterdir()):
        raise UserError(f"{FOLDER}{folder}: no weights in it (*.safetensors, *.bin or *.pth)")
    if not brings_all(config.name):
        other = _difference(model, open_clip.get_model_config(config.name))
        if other is not None:
            raise UserError(
                f"{FOLDER}{folder}: not weights of {config.name}: {other}; --backbone.name {FOLDER}{folder} takes "
                "the architecture from the folder"
            )
    return model


def choose(config: BackboneConfig, source: str | None, folder: Path | None, found: Found) -> bool:
    """Whether to build with QuickGELU.

    Args:
        config: whose setting decides, if it is not auto.
        source: tag or file of the weights; None: random.
        folder: of ``local-dir:``; then the architecture is the folder's.
        found: what the file says, from :func:`look`.

    Raises:
        UserError: it cannot be known, and both kinds of weights are about.
    """
    if folder is not None:
        by_name = bool(read_folder(folder, config).get("quick_gelu", False))
        told = Found(by_name, "open_clip_config.json")
    else:
        by_name, told = by_architecture(config.name), found
    weights = source or f"{FOLDER}{folder}"
    if folder is None and source is not None and is_tag(config.name, source):
        told = Found(bool(open_clip.get_pretrained_cfg(config.name, source).get("quick_gelu", False)), "open_clip")
        by_name = bool(told.quick_gelu)
    if config.quick_gelu != "auto":
        chosen = config.quick_gelu == "true"
    elif by_name or source is None or folder is not None or not _both_kinds(config.name):
        chosen = by_name or bool(told.quick_gelu)
    elif told.quick_gelu is None:
        raise UserError(
            f"{weights} for {config.name}: cannot tell whether these weights were trained with QuickGELU; OpenAI's "
            "and some others were: say --backbone.quick_gelu true or false"
        )
    else:
        chosen = told.quick_gelu
    if told.quick_gelu is not None and told.quick_gelu != chosen:
        warnings.warn(
            f"{config.name} runs with {WORDS[chosen]}, but {weights} was trained with {WORDS[told.quick_gelu]} "
            f"({told.why}): its features are not those that it was trained to give",
            RuntimeWarning,
            stacklevel=2,
        )
    return chosen


def as_recorded(config: BackboneConfig, identity: dict[str, Any]) -> BackboneConfig:
    """The settings of a backbone that was built before, auto replaced by what it was built with.

    Args:
        config: of a checkpoint, or of a run that goes on.
        identity: that the checkpoint recorded. Where it says nothing, files were built as their architecture says.
    """
    commit = identity.get("revision")
    if config.revision is None and isinstance(commit, str):
        config = dataclasses.replace(config, revision=commit)
    if config.quick_gelu != "auto":
        return config
    known = identity.get("quick_gelu")
    if not isinstance(known, bool):
        if config.name not in open_clip.list_models() or is_tag(config.name, config.pretrained):
            return config
        known = by_architecture(config.name)
    return dataclasses.replace(config, quick_gelu="true" if known else "false")


def metadata(config: BackboneConfig, quick_gelu: bool) -> dict[str, str] | None:
    """What a weights file is to say of itself; None: its architecture says it."""
    known = config.name in open_clip.list_models() and not _both_kinds(config.name)
    return None if known and by_architecture(config.name) == quick_gelu else {"quick_gelu": str(quick_gelu).lower()}


def look(path: Path, name: str) -> Found:
    """What a weights file and the configurations beside it say of an architecture's GELU."""
    found = _archive(path) if is_archive(path) else _tensors(path)
    if found.quick_gelu is not None:
        return found
    ours = open_clip.get_model_config(name)
    beside = _json(path.parent / "open_clip_config.json") or {}
    model = beside.get("model_cfg", beside)
    if isinstance(model, dict) and "vision_cfg" in model and _difference(model, ours) is None:
        return found._replace(quick_gelu=bool(model.get("quick_gelu", False)), why="open_clip_config.json beside it")
    kind = _hugging_face(_json(path.parent / "config.json") or {}, ours)
    return found if kind is None else found._replace(quick_gelu=kind, why="config.json beside it")


def is_tag(name: str, source: str | None) -> bool:
    """Whether these are weights that open_clip knows and downloads."""
    return source in open_clip.list_pretrained_tags_by_model(name)


def by_architecture(name: str) -> bool:
    """What open_clip's architecture of this name says; those that end in -quickgelu say true."""
    return bool(open_clip.get_model_config(name).get("quick_gelu", False))


def _both_kinds(name: str) -> bool:
    tags = (open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name))
    return f"{name}-quickgelu" in open_clip.list_models() or any(tag.get("quick_gelu", False) for tag in tags)


def _archive(path: Path) -> Found:
    """OpenAI's files are TorchScript archives; the code in them says what was computed."""
    archive = read_archive(path)
    # Masks are made by the architecture; a trace may have kept them.
    state = {n: t for n, t in archive.state.items() if n not in OPENAI and not n.endswith("attn_mask")}
    if "torch.gelu(" in archive.code:
        return Found(False, "its own code", state)
    if "torch.sigmoid(" in archive.code or set(OPENAI) <= set(archive.state):
        return Found(True, "its own code", state)
    return Found(None, "", state)


def _tensors(path: Path) -> Found:
    """Files of this package say it; a state dict of OpenAI's has their three numbers among its tensors."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
            said, words = about.get("quick_gelu"), about.get(seeded.KEY)
            known = said in ("true", "false")
            return Found(said == "true" if known else None, "its metadata" if known else "", words=words)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except Exception:
        return Found()  # whoever loads it says why it cannot be read
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    metadata = getattr(state, "_metadata", None)
    said = metadata.get("", {}).get("quick_gelu") if isinstance(metadata, dict) else None
    if isinstance(said, bool):
        return Found(said, "its metadata")
    if isinstance(state, dict) and set(OPENAI) <= set(state):
        return Found(True, "OpenAI's layout", {name: t for name, t in state.items() if name not in OPENAI})
    return Found()


def is_zip(path: Path) -> bool:
    """Whether torch wrote a file in its present form, which can be mapped."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _hugging_face(values: dict[str, Any], ours: dict[str, Any]) -> bool | None:
    """The activation of both towers in a config.json of Hugging Face's CLIPModel; None: it does not say, or of others."""
    acts = set()
    for part, tower in (("vision_config", "vision_cfg"), ("text_config", "text_cfg")):
        theirs = values.get(part)
        if not isinstance(theirs, dict):
            return None
        sizes = {"hidden_size": "width", "num_hidden_layers": "layers"}
        if any(theirs.get(key, ours[tower].get(own)) != ours[tower].get(own) for key, own in sizes.items()):
            return None
        acts.add(theirs.get("hidden_act"))
    return {"quick_gelu": True, "gelu": False}.get(str(acts.pop())) if len(acts) == 1 else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The first size in which two architectures differ, in words."""
    for part, names in SIZES.items():
        a: Any = theirs.get(part) if part else theirs
        b: Any = ours.get(part) if part else ours
        if not isinstance(a, dict) or not isinstance(b, dict):
            continue
        for name in names:
            if name in a and name in b and a[name] != b[name]:
                return f"{part}{'.' if part else ''}{name} is {a[name]}, not {b[name]}"
    return None
