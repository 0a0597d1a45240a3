"""``splip push-to-hub`` and ``splip pull-from-hub``: models and galleries on the Hugging Face Hub."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import splip
from splip import disk
from splip.cli import cards
from splip.cli.config import PullConfig, PushConfig
from splip.encoders import manifest
from splip.errors import UserError
from splip.gallery.folder import need_free, need_gallery
from splip.models import hub, names

CONFIG = "config.json"


def push(config: PushConfig) -> int:
    """``splip push-to-hub``."""
    wanted = hub.repository(config.repository)
    if wanted.revision is not None:
        raise UserError(f"{config.repository}: a push makes a new revision; leave out @{wanted.revision}")
    if not config.what.exists():
        raise UserError(f"{config.what}: no such run, checkpoint, export or gallery")
    hub.need_token(wanted)
    if (config.what / names.GALLERY).is_file():
        return _push_gallery(config, wanted)
    found = names.resolve(config.what)
    assert found.path is not None
    with tempfile.TemporaryDirectory(prefix="splip-push-") as made:
        folder = Path(made)
        if found.kind == "export":
            about = manifest.read(found.path)
            for name in (*about.sha256, manifest.FILE):
                shutil.copyfile(found.path / name, folder / name)
            card = cards.of_export(about, wanted.name, found.path / "README.md", config.license)
        else:
            card = _checkpoint(found.path, folder, config, wanted)
        disk.write_text(folder / "README.md", card)
        commit = hub.upload(folder, wanted, config.private, config.message)
    print(f"hf-hub:{wanted.name}@{commit}")
    return 0


def _checkpoint(path: Path, folder: Path, config: PushConfig, wanted: hub.Repository) -> str:
    """A checkpoint's files, and its card."""
    from splip.models.checkpoint import read_checkpoint, write_checkpoint

    state = read_checkpoint(path)
    best = folder / names.BEST
    if path.suffix == ".safetensors":
        shutil.copyfile(path, best)
    else:  # of an earlier version; galleries made with that file keep it
        write_checkpoint({key: value for key, value in state.items() if key != "optimiser"}, best)
    if "optimiser" in state:
        raise UserError(f"{path}: is the state of a run that goes on; push its {names.BEST}")
    facts = {key: value for key, value in state.items() if key not in ("trainable", "buffers")}
    disk.write_text(folder / CONFIG, json.dumps({"splip": splip.__version__, **facts}, indent=1) + "\n")
    return cards.of_checkpoint(state, wanted.name, _results(config.results), config.license)


def _results(path: Path | None) -> dict[str, Any]:
    """What ``splip eval`` measured."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found["query_mean"], dict):
            raise ValueError("query_mean is no table")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"--results {path}: not what `splip eval` writes as results.json ({error})") from None
    results: dict[str, Any] = found
    return results


def _push_gallery(config: PushConfig, wanted: hub.Repository) -> int:
    from splip.gallery import parcel
    from splip.gallery.gallery import Gallery

    wanted = hub.Repository(wanted.name, None, "dataset")
    place = config.what.absolute().parent
    with (
        Gallery.open(config.what, write=True) as gallery,
        tempfile.TemporaryDirectory(dir=place, prefix=f".{config.what.name}-push-") as made,
        parcel.packed(gallery, Path(made)) as facts,
    ):
        gallery.refresh()
        card = cards.of_gallery(facts, len(gallery), len(gallery.labels()), wanted.name, config.license)
        disk.write_text(Path(made) / "README.md", card)
        print(
            f"{config.what}: {len(gallery)} pictures' vectors, paths, labels and tags go to the hub; pictures do not",
            flush=True,
        )
        if facts["source"] is not None:
            print(f"its model, {facts['model']}, is an export and does not: push that too", flush=True)
        commit = hub.upload(Path(made), wanted, config.private, config.message)
    print(f"hf-hub:{wanted.name}@{commit}")
    return 0


def pull(config: PullConfig) -> int:
    """``splip pull-from-hub``."""
    out = config.out
    need_free(out)
    wanted, found = _either(config.repository)
    here = hub.Repository(wanted.name, found.commit, wanted.kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        made = Path(temporary) / "made"
        if names.GALLERY in found.files:
            from splip.gallery import parcel

            hub.download(wanted, found, parcel.own_files(found.files), made)
            shutil.rmtree(made / ".cache", ignore_errors=True)  # the client's notes
            need_gallery(made)
            print(f"{out}: {parcel.unpack(made, out, str(here))} pictures of {here}")
            return 0
        files = [name for name in found.files if "/" not in name]
        if not {names.BEST, names.EXPORT} & set(files):
            raise UserError(f"{wanted}: holds no gallery, no checkpoint of splip's and no export")
        hub.download(wanted, found, files, made)
        shutil.rmtree(made / ".cache", ignore_errors=True)
        if out.exists():
            out.rmdir()
        made.rename(out)
    print(f"{out}: {', '.join(sorted(files))} of {here}")
    return 0


def _either(name: str) -> tuple[hub.Repository, hub.Found]:
    """A repository of models, or of galleries: names are theirs apart."""
    wanted = hub.repository(name, "dataset")
    try:
        found = hub.look(wanted)
        if names.GALLERY in found.files:
            return wanted, found
        first = UserError(f"{wanted}: holds no gallery, no checkpoint of splip's and no export")
    except UserError as error:
        first = error
    wanted = hub.repository(name)
    try:
        return wanted, hub.look(wanted)
    except UserError:
        raise first from None
