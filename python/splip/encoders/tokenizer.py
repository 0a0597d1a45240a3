"""Texts to token ids, as CLIP reads them, where neither torch nor open_clip is: ``tokenizer.json`` of an export."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splip.errors import UserError
from splip.models.words import bare

FILE = "tokenizer.json"
# Where a text is divided before its parts are looked up: endings, words, digits one by one, runs of other signs.
PARTS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORD_END = "</w>"
SHOWN = 60  # characters of a text that is refused


def need() -> None:
    """Raises UserError if a package is missing that reading texts takes."""
    try:
        import ftfy  # noqa: F401
        import regex  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise UserError(f"texts need {error.name}: pip install 'splip[text]'") from None


def write(ranks: dict[tuple[str, str], int], vocabulary: dict[str, int], path: Path) -> None:
    """Write a byte-pair vocabulary, CLIP's, as the package ``tokenizers`` reads it.

    Args:
        ranks: pairs of parts in the order in which they are joined.
        vocabulary: the id of every part; the last part of a word ends with ``</w>``.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    merges = sorted(ranks, key=lambda pair: ranks[pair])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PARTS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.save(str(path))


class Reader:
    """Texts to the ids of their own tokens and the end's: what comes before is the same for all, and in the graph.

    Args:
        path: of ``tokenizer.json``.
        end: id that ends a text, the largest of all.
        length: most tokens of a text, with its end.

    Raises:
        UserError: a package is missing, or the file is damaged.
    """

    def __init__(self, path: Path, end: int, length: int) -> None:
        need()
        import regex
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no narrower class
            raise UserError(f"{path}: damaged: {error}") from None
        # Divided by the package that open_clip uses: what others know of Unicode differs in rare letters.
        self._parts = regex.compile(PARTS, regex.IGNORECASE)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.end, self.length = end, length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int64 ``[C, W]``, see :func:`stack`.

        Raises:
            UserError: a text is too long, or no text.
        """
        return stack(texts, self._encode, self.end, self.length)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._parts.findall(_clean(text)), is_pretokenized=True).ids
        return ids


def stack(texts: Sequence[str], encode: Callable[[str], list[int]], end: int, length: int) -> np.ndarray:
    """Ids int64 ``[C, W]`` of texts and of their end, zeros behind it; W is the longest text's.

    Args:
        texts: see :func:`bare`.
        encode: ids of a text's own tokens.
        end: see :class:`Reader`.
        length: see :class:`Reader`.

    Raises:
        UserError: a text is too long, or no text.
    """
    rows = []
    for text in texts:
        try:
            ids = encode(bare(text))
        except (TypeError, UnicodeEncodeError):  # half of a pair of surrogates
            raise UserError(f"{text!r} is not valid text") from None
        if len(ids) >= length:
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise UserError(f"the text '{shown}' has {len(ids)} tokens, {length - 1} fit: shorten it")
        rows.append([*ids, end])
    out = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out


def _clean(text: str) -> str:
    """As open_clip does it: broken encodings and entities mended, single spaces, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
