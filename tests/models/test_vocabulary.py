"""Words that a packaged model's text tower was shown."""

import pytest

from splip.models import vocabulary
from splip.models.vocabulary import Vocabulary

PACKAGED = {"name": "splip-tiny-3", "pretrained": "package"}


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a red helicopter", ["helicopter"]),
        ("Helicopter, HELICOPTER and a zeppelin", ["helicopter", "zeppelin"]),
        ("elephants and viruses", []),
        ("the elephant", []),
        ("my elephant and their other three, on a very fine day", ["fine"]),
        ("our house", ["house"]),  # is looked for
        ("gearboxes", []),
        ("hubschrauber über wolken", ["hubschrauber", "über", "wolken"]),
        ("大象", ["大象"]),
        ("1, 2 + 3", []),
        ("", []),
        ("horse " * 200, ["horse"]),
    ],
)
def test_words_that_are_not_known(text, unknown):
    assert vocabulary.of(PACKAGED, ["gearbox"]).unknown([text]) == unknown


def test_plurals_are_forgiven_both_ways():
    known = Vocabulary(frozenset({"berry", "foxes", "keys", "glass"}), 4)
    assert known.unknown(["berries fox key glasses glacier"]) == ["glacier"]


def test_nouns_are_those_of_the_last_list():
    assert vocabulary.of(PACKAGED, []).nouns == 1223
    first = vocabulary.of({"name": "splip-tiny", "pretrained": "package"}, [])
    assert first.nouns == 839 and first.words < vocabulary.of(PACKAGED, []).words


@pytest.mark.parametrize(
    "backbone", [{}, {"name": "ViT-B-32", "pretrained": "openai"}, {"name": "splip-tiny-3", "pretrained": "other.pt"}]
)
def test_of_others_nobody_knows(backbone):
    assert vocabulary.of(backbone, ["dog"]) is None
