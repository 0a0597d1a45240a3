"""What ``--model`` may say, and what it stands for. Imports no torch: commands that need none stay quick.

A name is one of these; a file or folder that is there goes before a preset of the same name:

* a checkpoint, ``runs/mine/best.safetensors`` (or ``best.pt`` of an earlier version), or its run's folder;
* a folder that ``splip export`` wrote;
* ``open_clip:ARCHITECTURE/TAG[@COMMIT]``: weights that open_clip knows, as they are;
* ``open_clip:ARCHITECTURE@FILE``: weights in a file;
* ``local-dir:FOLDER``: open_clip's folders, with an open_clip_config.json and weights;
* ``hf-hub:OWNER/NAME[@REVISION]``: a repository that ``splip push-to-hub`` or open_clip filled;
* ``timm:NAME.TAG[@SIDE]``: an image tower of timm's, without words;
* a preset, see ``splip models``.

The last five name a backbone: without training, pictures and texts are as close as it finds them (``zero-shot``).
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splip.errors import UserError, short
from splip.models import hub, presets
from splip.models.config import BackboneConfig
from splip.models.hub import OPEN_CLIP, Repository, repository

BEST, LAST = "best.safetensors", "last.safetensors"
OLD = {BEST: "best.pt", LAST: "last.pt"}  # names of earlier versions
EXPORT, GALLERY = "export.json", "gallery.db"
PREFIXES = ("open_clip:", "local-dir:", "hf-hub:", "timm:")


@dataclass(frozen=True)
class Model:
    """What a name stands for: a checkpoint's file, an export's folder, or a backbone as it is."""

    kind: Literal["checkpoint", "export", "backbone"]
    name: str
    """For people, and to find it again: with the commit, if it is of the hub."""
    path: Path | None = None
    """Of the file or folder."""
    backbone: BackboneConfig | None = None


def is_name(text: str) -> bool:
    """Whether a text is the name of a model and no path."""
    return text.startswith(PREFIXES) or (text in presets.PRESETS and not Path(text).exists())


def absolute(name: Path | str) -> Path | str:
    """The same model for a process that works elsewhere."""
    if not (isinstance(name, str) and is_name(name)):
        return Path(name).absolute()
    if name.startswith("local-dir:"):
        return f"local-dir:{Path(name.removeprefix('local-dir:')).absolute()}"
    if name.startswith("open_clip:") and "@" in name:
        before, _, file = name.partition("@")
        return f"{before}@{Path(file).absolute()}" if Path(file).is_file() else name  # or a commit
    return name


def in_folder(folder: Path, name: str = BEST) -> Path:
    """A run's checkpoint, of this or an earlier version; the former if there is none."""
    old = folder / OLD[name]
    return old if old.is_file() and not (folder / name).exists() else folder / name


def resolve(name: str | Path) -> Model:
    """What a name stands for; ``hf-hub:`` downloads it, if it is not here yet.

    Raises:
        UserError: one line that says why it is no model.
    """
    text = str(name)
    if not text.startswith(PREFIXES):
        path = Path(name)
        if path.exists():
            return _at(path, str(path))
        if text not in presets.PRESETS:
            raise UserError(f"no checkpoint {text}: {_unknown(text)}")
        text = presets.PRESETS[text].model
    prefix, _, rest = text.partition(":")
    if not rest:
        raise UserError(f"{prefix}: needs a name after it")
    if prefix == "hf-hub":
        return _of_hub(repository(text))
    return Model("backbone", text, backbone=backbone(text))


def backbone(text: str) -> BackboneConfig:
    """The backbone that a name with a prefix stands for; ``hf-hub:`` is taken for a repository of open_clip's.

    Raises:
        UserError: it cannot be meant, or names no weights.
    """
    prefix, _, rest = text.partition(":")
    if prefix == "hf-hub":
        repo = repository(text)
        return BackboneConfig(f"hf-hub:{repo.name}", revision=repo.revision)
    if prefix == "local-dir":
        return BackboneConfig(f"local-dir:{Path(rest).absolute()}")
    if prefix == "timm":
        if "." not in rest:
            raise UserError(f"{short(text)} names no weights: {prefix}:NAME.TAG, or {prefix}:NAME.TAG@SIDE")
        return BackboneConfig(text)
    found = re.fullmatch(r"(?P<name>[^/@]+)(?:@(?P<file>.+)|/(?P<tag>[^@/]+)(?:@(?P<commit>\w+))?)?", rest)
    if found is None:
        raise UserError(
            f"{short(text)}: cannot be meant; open_clip:NAME/TAG, open_clip:NAME/TAG@COMMIT or open_clip:NAME@FILE"
        )
    if found["file"]:
        file = Path(found["file"])
        if not file.is_file():
            raise UserError(f"{text}: no file {file}")
        return BackboneConfig(found["name"], str(file.absolute()))
    if found["tag"]:
        return BackboneConfig(found["name"], found["tag"], revision=found["commit"])
    if not (Path(__file__).parents[1] / "weights" / f"{found['name']}.safetensors").is_file():
        raise UserError(f"{text} names no weights: {text}/TAG for weights that open_clip knows, or {text}@FILE")
    return BackboneConfig(found["name"])


def _at(path: Path, name: str) -> Model:
    """A file, or a folder by what it holds."""
    if path.is_file():
        return Model("checkpoint", name, path)
    if (path / EXPORT).is_file():
        return Model("export", name, path)
    if (best := in_folder(path)).is_file():
        return Model("checkpoint", name, best)
    if (path / OPEN_CLIP).is_file():
        raise UserError(f"{path}: a folder of open_clip's is named local-dir:{path}")
    if (path / GALLERY).is_file():
        raise UserError(f"{path}: is a gallery; its model is the file model.safetensors or model.pt in it")
    raise UserError(f"{path}: no checkpoint ({BEST}) and not an export (no {EXPORT})")


def _of_hub(wanted: Repository) -> Model:
    """A repository by what it holds."""
    found = hub.look(wanted)
    here = Repository(wanted.name, found.commit)
    if EXPORT in found.files:
        return Model("export", str(here), hub.download(wanted, found, found.files))
    for name in (BEST, OLD[BEST]):
        if name in found.files:
            return Model("checkpoint", str(here), hub.download(wanted, found, [name]) / name)
    if OPEN_CLIP in found.files:
        hub.open_clip_folder(wanted, found)  # now, under the name that was asked for
        return Model("backbone", str(here), backbone=backbone(str(here)))
    if GALLERY in found.files:
        raise UserError(f"{wanted}: is a gallery; `splip pull-from-hub {wanted.name} --out FOLDER` brings it here")
    raise UserError(f"{wanted}: holds no checkpoint ({BEST}), no export ({EXPORT}) and no model of open_clip's")


def _unknown(text: str) -> str:
    if "/" in text or Path(text).suffix in (".pt", ".safetensors", ".pth", ".bin"):
        return "no such file or folder"
    near = difflib.get_close_matches(text.lower(), presets.PRESETS, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"no such file or folder, and no name of a model; {meant}`splip models` lists some"
