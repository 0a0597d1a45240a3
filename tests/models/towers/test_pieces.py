"""Tokenizers of Hugging Face's, read from a folder: built here, as none can be fetched."""

import json

import pytest
import torch
from tiny_towers import CONFIGS, NAMES

from splip.errors import UserError
from splip.models import build
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.models.towers import pieces

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["a", "photo", "of", "dog", "palm", "tree", "sketch", "cup"]


def write(folder, start=False, names=None, pad="<pad>", end="</s>"):
    """A tokenizer like SigLIP's: words in pieces, an end, and no start unless it is asked for."""
    special = [pad, end, "<unk>", "<s>"]
    vocabulary = [(word, 0.0) for word in special] + [(f"\u2581{word}", -1.0) for word in WORDS]
    vocabulary += [(letter, -5.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    template = f"{'<s> ' if start else ''}$A {end}"
    made.post_processor = tokenizers.processors.TemplateProcessing(template, special_tokens=[(end, 1), ("<s>", 3)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if names is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def read(folder, **more):
    return pieces.load(folder, {"context_length": 8, "tokenizer_kwargs": {"clean": "canonicalize"} | more}, "tiny")


def test_ids_ends_and_filling(tmp_path):
    made = read(write(tmp_path))
    assert (made.start, made.ends) == (0, (1, 0))
    rows = made(["A photo of a dog!", "dog"])  # canonical: lower case, no signs
    assert rows.tolist() == [[4, 5, 6, 4, 7, 1, 0, 0], [7, 1, 0, 0, 0, 0, 0, 0]]
    assert made.count("a photo of a dog") == 6 and made.count(" ".join(["dog"] * 20)) == 21
    assert made([" ".join(["dog"] * 20)]).tolist() == [[7] * 7 + [1]]  # cut off, with its end


def test_a_configuration_says_what_tokens_mean(tmp_path):
    """SigLIP's first tokenizers fill up with the end itself."""
    made = read(write(tmp_path, names={"pad_token": "</s>", "eos_token": {"content": "</s>"}}))
    assert made.ends == (1,) and made(["dog"]).tolist() == [[7] + [1] * 7]
    assert read(write(tmp_path / "b", start=True, names={"bos_token": "<s>"})).start == 1


@pytest.mark.parametrize("start", [False, True], ids=["siglip", "with a start"])
def test_a_folder_with_weights_and_tokenizer(tmp_path, start):
    """local-dir: both are read from it, and SpLIP's prompts stand behind the start, if there is one."""
    folder = write(tmp_path / "siglip", start=start)
    model = CONFIGS[NAMES["siglip"]]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    weights = PromptedCLIP(BackboneConfig(NAMES["siglip"], "random")).clip.state_dict()
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    config = TrainConfig(
        backbone=BackboneConfig(f"local-dir:{folder}"), loss=LossConfig(jigsaw=0),
        prompts=PromptConfig(text_tokens=2, template="{modality} of"),
    )  # fmt: skip
    built = build(config, ["dog", "palm tree"])
    first = [3] if start else []
    place = [2, 2]  # of any that neither ends a text nor fills it up
    body = [*first, *place, 10, 6, 8, 9, 1]
    assert built.tokens[0, 1].tolist() == body + [0] * (16 - len(body))
    assert built.backbone.reader.start == len(first) and built.word_ids.tolist() == [[*first, 10, 6], [*first, 5, 6]]
    out = built.eval().encode_text(["a dog", "cup"])
    assert out.shape == (2, 48) and (out[0] - out[1]).abs().max() > 1e-3
    with pytest.raises(UserError, match="longer than the backbone's 16 tokens"):
        build(config, [" ".join(["dog"] * 14)])


def test_damage_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(pieces.NoTokenizer, match="holds no tokenizer.json"):
        read(tmp_path / "none")
