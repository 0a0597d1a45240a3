"""The words that a packaged model's text tower was shown, from the lists of its pictures beside its weights.

Of other models nobody here knows: then nothing is said to be unknown to them. A model trained from a packaged one knows its
classes' names, too.
"""

import csv
import functools
import io
import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS = Path(__file__).parents[1] / "weights"
# Of each backbone in the package: the lists of what it was trained on, the last one first.
ICONS = ("splip-tiny-3.csv.xz", "splip-tiny.csv")  # splip-tiny-2 was shown pictures of the same nouns
LISTS = {"splip-tiny": ("splip-tiny.csv",), "splip-tiny-2": ICONS, "splip-tiny-3": ICONS}
WORD = re.compile(r"[^\W\d_]{2,}")
# Words that stand between others; they are not what is looked for.
SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the and or of in on at by to for from with without near next behind before under over into onto out off up "
        "down is are be was were has have as it its this that these those some any no not all each both other another more "
        "i me my you your yours he him his she her hers we us our ours they them their theirs who which there here "
        "one two three four five six seven eight nine ten many several few lots very really so too quite just "
        "picture pictures photo photos photograph photographs image images drawing drawings sketch sketches showing shows "
        "looking day days",
    )
)


class Vocabulary(NamedTuple):
    """What a text tower was shown.

    Args:
        words: in lower case.
        nouns: things that had a name of their own.
    """

    words: frozenset[str]
    nouns: int

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """The words of some texts that are not among them, in their order and each once; plurals count as their singulars."""
        asked = dict.fromkeys(word for text in texts for word in _words(text) if word not in SMALL)
        return [word for word in asked if not self.words.intersection(_forms(word))]


def of(backbone: Mapping[str, Any], classes: Sequence[str]) -> Vocabulary | None:
    """The words that a model was shown; None: that is not known.

    Args:
        backbone: its identity, from :meth:`splip.models.clip.PromptedCLIP.identity`.
        classes: names of the classes that it was trained on.
    """
    if backbone.get("pretrained") != "package" or backbone.get("name") not in LISTS:
        return None
    packaged = _packaged(str(backbone["name"]))
    return Vocabulary(packaged.words.union(*map(_words, classes)), packaged.nouns)


@functools.cache
def _packaged(name: str) -> Vocabulary:
    words: set[str] = set()
    nouns = 0
    for place, file in enumerate(LISTS[name]):
        data = (WEIGHTS / file).read_bytes()
        text = (lzma.decompress(data) if file.endswith(".xz") else data).decode("utf-8")
        for row in csv.DictReader(io.StringIO(text)):
            for column in ("name", "class", "synonyms"):
                words.update(_words(row.get(column) or ""))
            nouns += place == 0
    return Vocabulary(frozenset(words), nouns)


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _forms(word: str) -> set[str]:
    """A word, and what it is if it is a plural, or its plurals if it is none."""
    found = {word, f"{word}s", f"{word}es"}
    if word.endswith("s"):
        found.add(word[:-1])
    if word.endswith("es"):
        found.add(word[:-2])
    if word.endswith("ies"):
        found.add(f"{word[:-3]}y")
    if word.endswith("y"):
        found.add(f"{word[:-1]}ies")
    return found
