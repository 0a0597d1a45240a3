"""Texts become the ids that open_clip's tokenizer gives, without open_clip."""

import sys

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splip.encoders import tokenizer
from splip.errors import UserError
from splip.models import words

pytest.importorskip("tokenizers")
THEIRS = open_clip.SimpleTokenizer()
# open_clip takes these two for the marks that they are written like.
TEXTS = st.text(max_size=60).filter(lambda text: "_of_text>" not in text.lower())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / tokenizer.FILE
    tokenizer.write(THEIRS.bpe_ranks, THEIRS.encoder, path)
    return path


@pytest.fixture(scope="module")
def reader(path):
    return tokenizer.Reader(path, THEIRS.eot_token_id, 512)


def read(path, texts, length=512):
    return tokenizer.Reader(path, THEIRS.eot_token_id, length)(texts)


@pytest.mark.parametrize(
    "text",
    ["dog", "  a  Horse ", "An Elephant's trunk, don't", "1889 towers & 7 o\u2019clock", "caf\u00c3\u00a9 &amp;lt; cr\u00e8me", "\u65e5\u672c \U0001f40e\ufe0f", "", "\u0130x", "\ud800"],
)  # fmt: skip
def test_ids_are_those_of_open_clip(path, text):
    try:
        wanted = [*THEIRS.encode(words.bare(text)), THEIRS.eot_token_id]
    except UnicodeEncodeError:
        with pytest.raises(UserError, match="is not valid text"):
            read(path, [text])
        return
    assert read(path, [text])[0].tolist() == wanted


@pytest.mark.exhaustive
@settings(max_examples=2000, deadline=None)
@given(text=TEXTS)
def test_ids_of_any_text(reader, text):
    assert reader([text])[0].tolist() == [*THEIRS.encode(words.bare(text)), THEIRS.eot_token_id]


def test_a_batch_is_filled_with_zeros(path):
    ids = read(path, ["a red car", "dog", ""])
    end = THEIRS.eot_token_id
    assert ids.dtype == np.int64 and ids.tolist() == [
        [*THEIRS.encode("red car"), end],
        [*THEIRS.encode("dog"), end, 0],
        [end, 0, 0],
    ]
    assert read(path, []).shape == (0, 0)
    assert [words.bare(text) for text in (" The dog", "a", "an", "another dog", "a\thorse")] == [
        "dog", "a", "an", "another dog", "horse",
    ]  # fmt: skip


def test_refusals(path, tmp_path, monkeypatch):
    assert read(path, ["one two three"], 4).shape == (1, 4)
    with pytest.raises(UserError, match="the text 'one two three four' has 4 tokens, 3 fit: shorten it"):
        read(path, ["dog", "one two three four"], 4)
    (tmp_path / tokenizer.FILE).write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: damaged: "):
        read(tmp_path / tokenizer.FILE, ["dog"])
    for package in ("ftfy", "regex", "tokenizers"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=rf"texts need {package}: pip install 'splip\[text\]'"):
                read(path, ["dog"])
