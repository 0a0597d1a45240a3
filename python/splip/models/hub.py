"""Repositories of the Hugging Face Hub: what is in one, what is needed of it, and the commit that it is of.

All traffic is huggingface_hub's own: its cache, its token, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``. Without a network what
is in the cache is used, and what is not is one line. Imported when it is needed, so that this module costs nothing.
"""

import contextlib
import fnmatch
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from splip import disk
from splip.errors import UserError, short

PREFIX = "hf-hub:"
OPEN_CLIP = "open_clip_config.json"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)  # a branch, a tag or a commit
FILE = re.compile(r"(?:vectors/)?\w[\w.-]*", re.ASCII)  # all that splip, open_clip and an export write
COMMIT = re.compile(r"[0-9a-f]{40}")
# As open_clip looks for them, tensors before pickles; those are read with weights_only.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
STALE = ("best.pt", "best.safetensors", "export.json", "gallery.db", "vectors/*", "model.pt", "model.safetensors")
SMALL = ("*.json", "*.txt", "*.model")  # configurations, vocabularies


@dataclass(frozen=True)
class Repository:
    """``OWNER/NAME``, and which of its revisions; None: the newest."""

    name: str
    revision: str | None = None
    kind: str = "model"
    """model, or dataset: what galleries are to the hub."""

    def __post_init__(self) -> None:
        """What a checkpoint or a gallery says may come from anywhere: names become paths in the cache.

        Raises:
            UserError: it cannot be meant.
        """
        said = f"{self.name}@{self.revision}" if self.revision is not None else self.name
        if (
            not NAME.fullmatch(self.name)
            or ".." in said
            or (self.revision is not None and not REVISION.fullmatch(self.revision))
        ):
            raise UserError(f"{short(said)}: a repository of the hub is OWNER/NAME, or OWNER/NAME@REVISION")

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}{'' if self.revision is None else f'@{self.revision}'}"


class Found(NamedTuple):
    """A revision of a repository."""

    commit: str
    files: list[str]
    """Those with plain names; what else a repository holds is none of ours."""
    cached: Path | None = None
    """Where they lie, if the hub was not asked."""


def repository(text: str, kind: str = "model") -> Repository:
    """The repository that ``hf-hub:OWNER/NAME[@REVISION]``, or the same without its prefix, names.

    Raises:
        UserError: it cannot be meant.
    """
    name, at, revision = text.removeprefix(PREFIX).partition("@")
    if NAME.fullmatch(name) is None or ".." in text or (at and REVISION.fullmatch(revision) is None):
        raise UserError(f"{short(text)}: a repository of the hub is OWNER/NAME, or OWNER/NAME@REVISION")
    return Repository(name, revision or None, kind)


def look(wanted: Repository) -> Found:
    """The files of a repository; without a network, those in the cache.

    Raises:
        UserError: there is no such repository or revision, or it may not be read.
    """
    hf = client()
    if not hf.constants.HF_HUB_OFFLINE:
        cached: list[str] = []
        with errors(wanted, cached):
            info = hf.HfApi().repo_info(wanted.name, revision=wanted.revision, repo_type=wanted.kind)
            files = [str(file.rfilename) for file in info.siblings or []]
            return Found(str(info.sha), [name for name in files if FILE.fullmatch(name)])
        reason = cached[0]
    else:
        reason = "HF_HUB_OFFLINE is set"
    folder = _cached(wanted)
    if folder is None:
        raise UserError(f"{wanted}: is not in the cache, and cannot be downloaded: {reason}")
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return Found(folder.name, files, folder)


def download(wanted: Repository, found: Found, files: Iterable[str], to: Path | None = None) -> Path:
    """Files of a repository; returns the folder that they lie in.

    Args:
        wanted: as it was asked for.
        found: what :func:`look` said: of that commit.
        files: names or patterns of files.
        to: where to; None: into the hub's cache, unless they are there.

    Raises:
        UserError: they cannot be downloaded.
    """
    hf = client()
    if found.cached is not None:
        if to is None:
            return found.cached
        for name in filter(lambda name: any(fnmatch.fnmatch(name, one) for one in files), found.files):
            shutil.copyfile(found.cached / name, _made(to / name))
        return to
    where: dict[str, Any] = {} if to is None else {"local_dir": to}
    with errors(wanted), _quiet(hf):
        folder = Path(
            hf.snapshot_download(
                wanted.name, revision=found.commit, repo_type=wanted.kind, allow_patterns=list(files), **where
            )
        )
        if to is None and wanted.revision != found.commit:  # so that it is found without a network
            disk.write_text(_made(folder.parents[1] / "refs" / _revision(wanted)), found.commit)
    return folder


def open_clip_folder(wanted: Repository, found: Found | None = None) -> Path:
    """A repository of open_clip's as ``local-dir:`` takes it: its configuration, its words, one file of weights.

    Raises:
        UserError: it is none, or cannot be downloaded.
    """
    found = found or look(wanted)
    names = [name for name in WEIGHTS if name in found.files]
    if OPEN_CLIP not in found.files or not names:
        raise UserError(f"{wanted}: not a model of open_clip's ({OPEN_CLIP} and {WEIGHTS[0]})")
    return download(wanted, found, [*SMALL, names[0]])


def weights(name: str, pretrained: str | None, revision: str | None) -> tuple[str | None, dict[str, Any]]:
    """A tag's weights as a file of the hub, and how pictures are prepared for them; anything else as it is.

    Args:
        name: open_clip's architecture.
        pretrained: a tag, a file, or None.
        revision: commit of the repository; None: the newest.

    Raises:
        UserError: they cannot be downloaded.
    """
    place = _of_tag(name, pretrained)
    if place is None:
        return pretrained, {}
    (repo, file), tag = place, _tag(name, pretrained)
    wanted = Repository(repo, revision)
    found = look(wanted)
    candidates = [file] if file else list(WEIGHTS)
    if file:
        candidates.insert(0, str(Path(file).with_suffix(".safetensors")))
    chosen = next((one for one in candidates if one in found.files), None)
    if chosen is None:
        raise UserError(f"{wanted}: holds none of {', '.join(candidates)}")
    folder = download(wanted, found, [chosen])
    keys = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    return str(folder / chosen), {key: tag[key] for key in keys if key in tag}


def commit_of(config: Any) -> str | None:
    """The commit that a backbone's weights were just loaded from; None: they are not of the hub.

    Args:
        config: a :class:`splip.models.config.BackboneConfig`.
    """
    if config.name.startswith(PREFIX):
        repo: str | None = config.name.removeprefix(PREFIX)
    else:
        place = _of_tag(config.name, config.pretrained)
        repo = None if place is None else place[0]
    if repo is None or (config.revision is not None and COMMIT.fullmatch(config.revision)):
        return None if repo is None else config.revision
    folder = _cached(Repository(repo, config.revision))
    return None if folder is None else folder.name


def need_token(wanted: Repository) -> None:
    """Raises UserError: nothing can be pushed from here."""
    hf = client()
    if hf.constants.HF_HUB_OFFLINE:
        raise UserError(f"{wanted}: HF_HUB_OFFLINE is set: nothing can be pushed")
    if hf.get_token() is None:
        raise UserError(f"{wanted}: no token: `hf auth login`, or set HF_TOKEN to one that may write")


def upload(folder: Path, wanted: Repository, private: bool = False, message: str = "") -> str:
    """Make a repository, unless it is there, and put a folder's files into it as one commit; returns that.

    Raises:
        UserError: no token, or none that may write there; or the upload was interrupted, and the repository is as it
            was.
    """
    need_token(wanted)
    hf = client()
    with errors(wanted), _quiet(hf):
        api, text = hf.HfApi(), message or "Push with splip"
        api.create_repo(wanted.name, private=private or None, repo_type=wanted.kind, exist_ok=True)
        done = api.upload_folder(
            repo_id=wanted.name, folder_path=folder, repo_type=wanted.kind, commit_message=text, delete_patterns=STALE
        )
    return str(done.oid)


def client() -> Any:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError("hf-hub: needs huggingface_hub: pip install 'splip[hub]'") from None
    return huggingface_hub


@contextlib.contextmanager
def errors(wanted: Repository, unreachable: list[str] | None = None) -> Iterator[None]:
    """Turn the client's errors into one line that names the repository and never a token.

    Args:
        wanted: what was asked for.
        unreachable: takes the reason, and the block ends well, if the hub cannot be reached.
    """
    hf = client()
    try:
        yield
    except UserError:
        raise
    except hf.errors.GatedRepoError:
        raise UserError(
            f"{wanted}: its owner wants to be asked: do so on its page, and use that account's token"
        ) from None
    except hf.errors.RevisionNotFoundError:
        raise UserError(f"{wanted}: no such revision") from None
    except hf.errors.RepositoryNotFoundError:
        known = "this token may not read" if hf.get_token() else "is private: `hf auth login`, or set HF_TOKEN"
        raise UserError(f"{wanted}: no such {wanted.kind} on the hub, or one that {known}") from None
    except hf.errors.LocalEntryNotFoundError as error:
        _unreachable(wanted, str(error), unreachable)
    except hf.errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status >= 500:
            _unreachable(wanted, f"the hub answered {status}", unreachable)
        what = {401: "the token is not valid", 403: "the token may not do this"}.get(status, str(error))
        raise UserError(f"{wanted}: {redacted(what)}") from None
    except Exception as error:  # of httpx, requests or the disk: no common class
        if isinstance(error, (MemoryError, AssertionError)):
            raise
        _unreachable(wanted, str(error) or type(error).__name__, unreachable)


def redacted(text: str) -> str:
    """A message of the client's on one line, without the token."""
    token = client().get_token()
    text = " ".join(text.replace(token, "***").split()) if token else " ".join(text.split())
    return re.sub(r"hf_\w{8,}", "***", text)[:300]


def _unreachable(wanted: Repository, reason: str, unreachable: list[str] | None) -> None:
    if unreachable is None:
        raise UserError(f"{wanted}: the hub did not answer as it should: {redacted(reason)}") from None
    unreachable.append(redacted(reason))


def _revision(wanted: Repository) -> str:
    return wanted.revision or "main"


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _cached(wanted: Repository) -> Path | None:
    """The folder of a revision in the client's cache, whose layout is documented."""
    base = Path(client().constants.HF_HUB_CACHE) / "--".join([f"{wanted.kind}s", *wanted.name.split("/")])
    ref = base / "refs" / _revision(wanted)
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else _revision(wanted)
    folder = base / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


@contextlib.contextmanager
def _quiet(hf: Any) -> Iterator[None]:
    """Without the client's own remarks; its bars on a terminal only."""
    from splip.progress import is_terminal  # brings rich, which encoders of exports do without

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = hf.utils.logging.get_verbosity()
        hf.utils.logging.set_verbosity_error()
        if not is_terminal():
            hf.utils.disable_progress_bars()
        try:
            yield
        finally:
            hf.utils.enable_progress_bars()
            hf.utils.logging.set_verbosity(before)


def _tag(name: str, pretrained: str | None) -> Mapping[str, Any]:
    import open_clip

    found: Mapping[str, Any] = (open_clip.get_pretrained_cfg(name, pretrained) or {}) if pretrained else {}
    return found


def _of_tag(name: str, pretrained: str | None) -> tuple[str, str] | None:
    """Repository and file, or none, of a tag's weights; None: no tag, or its weights lie elsewhere."""
    place = _tag(name, pretrained).get("hf_hub", "")
    if not place or "file" in _tag(name, pretrained):
        return None
    repo, _, file = place.rpartition("/")
    return repo, file
