"""Tokenizers of Hugging Face's that backbones such as SigLIP read texts with.

open_clip reads them with ``transformers``, from the hub. Where either is missing, the ``tokenizer.json`` that the same
repository holds says as much: it is read from the folder of ``local-dir:``, or from the hub and its cache.
"""

import importlib.util
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
import torch
from open_clip.tokenizer import get_clean_fn
from torch import Tensor

from splip.errors import UserError, short

OPTIONS = {"clean", "strip_sep_token"}  # all that open_clip's architectures say
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROOM = 64  # tokens beyond the context that a text is read to, to say how long it is
PADS, ENDS, STARTS = ("<pad>", "[PAD]"), ("</s>", "<eos>", "[SEP]"), ("<s>", "<bos>", "[CLS]")


class NoTokenizer(UserError):
    """Texts cannot be read here; images can."""


class Pieces:
    """Texts to ids ``[C, M]``, padded to the context.

    Args:
        read: texts and a length to padded ids, as open_clip's ``HFTokenizer``.
        context: M.
        pad: id that fills a text up.
        end: id that ends a text.
        starts: ids of which one may begin every text.
    """

    def __init__(self, read: Any, context: int, pad: int, end: int | None, starts: Sequence[int] = ()) -> None:
        self._read, self.context_length = read, context
        self.ends = tuple(dict.fromkeys(number for number in (end, pad) if number is not None))
        first = int(read(["x"], context)[0, 0])
        self.start = int(first in starts)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        tokens: Tensor = self._read(list(texts), context_length or self.context_length)
        return tokens

    def count(self, text: str) -> int:
        """Tokens of a text, with all that is put around it, its end included."""
        tokens = self([text], self.context_length + ROOM)[0]
        ends = torch.isin(tokens, torch.tensor(self.ends)).nonzero()
        return len(tokens) if not len(ends) else int(ends[0]) + 1


def load(source: str | Path, text_cfg: dict[str, Any], name: str) -> Pieces:
    """The tokenizer of a backbone.

    Args:
        source: the hub's name of it, or a folder that holds it.
        text_cfg: of open_clip's architecture.

    Raises:
        UserError: it is not here and cannot be had.
    """
    options = _options(text_cfg, name)
    try:
        context = int(text_cfg["context_length"])
        file = source / FILE if isinstance(source, Path) else _of_hub(source)
        if file is not None and file.is_file():
            return _of_file(file, context, options)
        made = open_clip.tokenizer.HFTokenizer(str(source), context_length=context, **options)
        inner = made.tokenizer
        starts = [n for n in (inner.bos_token_id, inner.cls_token_id) if n is not None]
        return Pieces(made, context, 0 if made.strip_sep_token else inner.pad_token_id, inner.eos_token_id, starts)
    except UserError:
        raise
    except Exception as error:  # of the hub, the network, transformers: no common class
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        missing = f"{source}: holds no {FILE}" if isinstance(source, Path) else f"the tokenizer {source} is not here"
        raise NoTokenizer(
            f"{name} reads texts with a tokenizer of Hugging Face's, and {missing} ({reason}): fetch its {FILE} where there "
            "is a network (hf download, into HF_HOME), or put it beside the weights of a local-dir: folder; images need none"
        ) from None


def _options(text_cfg: dict[str, Any], name: str) -> dict[str, Any]:
    """What an architecture says of its tokenizer. Whatever else a configuration says would reach ``transformers``, which
    runs code that some of its options name.

    Raises:
        UserError: it says more than open_clip's own architectures do.
    """
    options = text_cfg.get("tokenizer_kwargs", {})
    if not isinstance(options, dict) or not set(options) <= OPTIONS:
        raise UserError(f"{name}: tokenizer_kwargs is {short(options)}; only {', '.join(sorted(OPTIONS))} are taken")
    return dict(options)


def _of_hub(source: str) -> Path | None:
    """``tokenizer.json`` of the hub, or of its cache; None: ``transformers`` is here, and reads it as open_clip does."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    if importlib.util.find_spec("transformers") is not None:
        return None
    found = try_to_load_from_cache(source, FILE)
    if not isinstance(found, str):
        _reach(urlsplit(constants.ENDPOINT).hostname or "")
        found = hf_hub_download(source, FILE)
        hf_hub_download(source, CONFIG)
    return Path(found)


def _reach(host: str) -> None:
    """Fail at once where the hub has no address: its own client tries again for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not getproxies():
        socket.getaddrinfo(host, 443)


def _of_file(file: Path, context: int, options: dict[str, Any]) -> Pieces:
    """A ``tokenizer.json``, read without ``transformers``."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise NoTokenizer(f"texts need {error.name}: pip install 'splip[text]'") from None
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
        named = _named(file.parent / CONFIG)
    except Exception as error:  # the package raises no narrower class
        raise UserError(f"{file}: damaged: {' '.join(str(error).split())[:120]}") from None
    clean = get_clean_fn(options.get("clean", "whitespace"))

    def ids(key: str, usual: Sequence[str]) -> list[int]:
        found = (tokenizer.token_to_id(token) for token in ([named[key]] if key in named else usual))
        return [number for number in found if number is not None]

    pads, ends = ids("pad_token", PADS), ids("eos_token", ENDS)
    starts = ids("bos_token", STARTS) + ids("cls_token", STARTS)
    strip = ids("sep_token", ("[SEP]",)) if options.get("strip_sep_token") else []
    if not pads and not ends:
        raise UserError(f"{file}: names no token that ends or fills up a text")
    pad = pads[0] if pads else ends[0]

    def read(texts: Sequence[str], length: int) -> Tensor:
        rows = torch.full((len(texts), length), pad, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            found = list(tokenizer.encode(clean(text)).ids)
            if len(found) > length:  # its end stays, as transformers keeps it
                found = [*found[: length - 1], found[-1]] if found[-1] in ends else found[:length]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        if strip:
            rows[rows == strip[0]] = 0
        return rows

    return Pieces(read, context, 0 if strip else pad, ends[0] if ends and not strip else None, starts)


def _named(file: Path) -> dict[str, str]:
    """Which tokens mean what, by ``tokenizer_config.json``; empty without one."""
    if not file.is_file():
        return {}
    values = json.loads(file.read_text(encoding="utf-8"))
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in values.items() if k.endswith("_token")}
    return {key: token for key, token in named.items() if isinstance(token, str)}
