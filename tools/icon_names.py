# ruff: noqa: SIM905
"""What an icon shows, from its name: a noun of WordNet, or nothing where the name is of a user interface's thing.

Pictures of many designers come under names such as ``dog-side-outline``, ``solar--cat-bold-duotone`` or ``Coccinelle 01``. Words
of style are dropped, names with words of interfaces (``arrow``, ``edit``, ``off``) are refused, and what stays must hold one
noun for a thing that can be seen: WordNet 3.0 (Debian's ``wordnet-base``) says which nouns those are, which of them mean the
same, and what they are kinds of.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from splip.data import leaks

# WordNet's files of nouns for what can be seen: animals, artefacts, bodies, food, objects, phenomena, plants, substances.
SEEN = {5, 6, 8, 13, 17, 19, 20, 27}
PEOPLE = {18}
STYLE = set(
    """outline outlined outlines filled fill line lines linear solid bold light thin duotone twotone two tone sharp round
    rounded regular flat color colour colored colored broken bulk mini micro alt variant black white small large big xl lg
    md sm sided left right up down front back side top bottom horizontal vertical diagonal one three four single double
    multiple half empty full open opened close closed glyph emoji new old o s r l fa icon symbol simple square circle circular
    rectangle the a an of and with in on face head red green blue yellow orange purple brown pink grey gray dark animated
    loop twotone line-md static wght freehand streamline pop little standing sitting flying running cartoon baby toy photo
    plain 01 02 cute happy sad funny clip art vector drawing""".split()
)
INTERFACE = set(
    """off slash plus minus add remove check checked uncheck x cross alert arrow arrows chevron caret edit settings setting
    cog gear sync refresh reload download upload search zoom text format align sort filter list grid view layout layer
    layers column columns row rows file folder document documents page pages user users person people man woman boy girl
    account contact group team message messages chat bubble comment mail email inbox send reply share link unlink cursor pointer
    select selection border frame crop rotate flip math equal percent number numeric letter alpha alphabet font type input
    output form password code api web www http url browser window tab tabs panel sidebar menu button toggle switch
    radio checkbox progress loading loader spinner status info question help warning error danger disable disabled enable
    cancel delete trash-x block blocked ban no not do never without play pause stop record skip next previous forward
    rewind repeat shuffle volume mute speaker-off network wifi signal bluetooth nfc server database data cloud-x query sql
    git branch merge commit fork pull request issue logo brand google apple-pay facebook twitter instagram youtube github
    windows linux android chrome paypal visa amazon microsoft adobe slack discord whatsapp telegram tiktok ai gpt auto
    manual mode rate score step steps chart graph analytics analysis table tables pie-chart bar bars dashboard report
    sign signs signage shape shapes polygon hexagon pentagon triangle octagon dot dots dotted dashed more less ellipsis
    copy paste cut-out clipboard undo redo save import export print scan qr barcode id badge verified new-releases quote
    currency dollar euro pound yen rupee bitcoin coin payment pay price tag tags sale discount invoice bill transaction
    language translate translation subtitle caption accessibility gender male female restroom room meeting place location map
    pin marker route direction directions navigation compass-x gps path point points flag flags zone region time date day
    week month year schedule event history today timeline am pm deadline size width height length max min expand collapse
    minimize maximize fullscreen fit resize move drag drop swap switch exchange convert transfer transform in-out enter exit
    login logout log signin signout start end begin finish first last level levels high low medium mid step scale
    ratio aspect resolution quality hd uhd 4k 3d 2d vr ar cc sd fps iso raw jpg png gif svg pdf csv xml json html css js
    like dislike love favorite favourite subscribe follow notification notifications reminder sound audio video media music-note
    emotion feeling mood smile laugh cry angry neutral kiss wink grin skin stage flow workflow process task todo goal target-x
    model object objects component components element elements module plugin extension widget app apps application program
    terminal console command shell script bug debug test testing lab-x security shield protect protection privacy policy
    negative positive px local center centre at counter sticker stickers cast background board boards handle grip power device
    devices screen screens sensor sensors dock chevron chevrons portrait panorama gallery landscape zodiac weather station blind
    stick position align-center grid-x margin padding corner corners focus focused activity capture display monitor preview
    photo photos image images picture pictures wallpaper camera-off cloudy network-x local-x public private world-x source
    fonts hash hashtag slot drive drives processor memory chip host hosting port ports deploy
    """.split()
)


class Nouns:
    """WordNet's nouns for things that can be seen.

    Args:
        folder: with ``index.noun``, ``data.noun`` and ``noun.exc``.
    """

    def __init__(self, folder: Path) -> None:
        self.senses: dict[str, list[int]] = {}
        self.words: dict[int, list[str]] = {}
        self.file: dict[int, int] = {}
        self.above: dict[int, list[int]] = {}
        for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            parts = line.split(" | ")[0].split()
            offset, count = int(parts[0]), int(parts[3], 16)
            self.file[offset] = int(parts[1])
            self.words[offset] = [parts[4 + 2 * i].lower() for i in range(count)]
            rest = parts[5 + 2 * count :]
            self.above[offset] = [int(rest[i + 1]) for i in range(0, len(rest) - 3, 4) if rest[i] in ("@", "@i")]
        for line in (folder / "index.noun").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                parts = line.split()
                self.senses[parts[0]] = [int(offset) for offset in parts[-int(parts[2]) :]]
        exceptions = (line.split() for line in (folder / "noun.exc").read_text(encoding="latin-1").splitlines())
        self.irregular = {parts[0]: parts[1] for parts in exceptions if len(parts) > 1}

    def singular(self, word: str) -> str:
        """The word in WordNet's form: of plurals the singular, if WordNet has that."""
        if word in self.irregular:
            return self.irregular[word]
        if word in self.senses:
            return word
        for ending, instead in (
            ("ies", "y"),
            ("ves", "f"),
            ("ches", "ch"),
            ("shes", "sh"),
            ("xes", "x"),
            ("ses", "s"),
            ("s", ""),
        ):
            if word.endswith(ending) and word.removesuffix(ending) + instead in self.senses:
                return word.removesuffix(ending) + instead
        return word

    def thing(self, words: tuple[str, ...]) -> int | None:
        """What a noun of one or more words names first of all, if that can be seen."""
        joined = "_".join((*words[:-1], self.singular(words[-1])))
        found = self.senses.get(joined) or self.senses.get("-".join(words)) or self.senses.get("".join(words))
        for sense in (found or [])[: 2 if len(words) == 1 else 1]:
            if self.file[sense] in SEEN:
                return sense
            if self.file[sense] in PEOPLE:
                return None
        return None

    def kinds(self, sense: int) -> list[int]:
        """What a thing is a kind of, and itself first: along the first of several ways up."""
        chain = [sense]
        while self.above[chain[-1]] and len(chain) < 40:
            chain.append(self.above[chain[-1]][0])
        return chain

    def ancestors(self, sense: int) -> set[int]:
        """All that a thing is a kind of, along every way, and itself."""
        found, rest = set(), [sense]
        while rest:
            one = rest.pop()
            if one not in found:
                found.add(one)
                rest += self.above[one]
        return found

    def name(self, sense: int) -> str:
        return self.words[sense][0].replace("_", " ")

    def shows(self, name: str) -> int | None:
        """The one thing that a picture's name says it shows; None if it names none, or two."""
        tokens = [word for word in split(name) if not word.isdigit()]
        if not tokens or len(tokens) > 6 or INTERFACE.intersection(tokens):
            return None
        whole = self.thing(tuple(tokens)) if len(tokens) > 1 else None
        if whole is not None:
            return whole
        tokens = [word for word in tokens if word not in STYLE and len(word) > 1]
        found: list[int] = []
        at = 0
        while at < len(tokens):
            for length in range(min(4, len(tokens) - at), 0, -1):
                sense = self.thing(tuple(tokens[at : at + length]))
                if sense is not None:
                    found.append(sense)
                    at += length
                    break
            else:
                at += 1
        return found[0] if len(set(found)) == 1 else None

    def held(self, split: str) -> "Held":
        return Held(self, split)


class Held:
    """What a backbone must not see of the sample's classes: their words, plurals, synonyms, and kinds of them."""

    def __init__(self, nouns: Nouns, split: str) -> None:
        self.nouns, self.split = nouns, split
        known = leaks.kept(split)
        self.same = {s: w for w in known.words if (s := nouns.thing((w,))) is not None}
        classes = sorted(set(known.words.values()))
        self.kinds = {s: c for c in classes if (s := nouns.thing(tuple(c.split("_")))) is not None}
        self.plural = {nouns.singular(word): word for word in known.words}

    def reason(self, name: str, sense: int | None) -> str | None:
        """Why a picture of this name, that shows this, must not be seen; None: it may."""
        known = leaks.kept(self.split)
        for word in split(name):
            word = self.nouns.singular(word)
            if word in known.words or word in self.plural:
                return f"'{word}' is a {known.words[self.plural.get(word, word)]}"
        if sense is not None:
            if sense in self.same:
                return f"{self.nouns.name(sense)} is another word for {self.same[sense]}"
            for kind in self.nouns.ancestors(sense) & set(self.kinds):
                return f"{self.nouns.name(sense)} is a kind of {self.kinds[kind]}"
        return None


def split(name: str) -> list[str]:
    """The words of a name in lower case: ``CatFace_01`` is cat, face, 01."""
    spaced = re.sub(r"([a-z])([A-Z0-9])", r"\1 \2", name)
    return re.findall(r"[a-z]+|[0-9]+", spaced.lower())


def classes(nouns: Nouns, senses: Iterable[int], least: int = 6) -> dict[int, int]:
    """A class for each thing: the nearest of what it is a kind of that holds at least so many of the things."""
    chains = {sense: nouns.kinds(sense) for sense in senses}
    counts = Counter(kind for chain in chains.values() for kind in chain)
    return {sense: next((k for k in chain if counts[k] >= least), chain[-1]) for sense, chain in chains.items()}
