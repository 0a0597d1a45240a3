"""``splip models``: what its list says is so, and times of this machine are kept."""

import json

import open_clip
import pytest
import timm
import torch

from splip.cli import models
from splip.models import names
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig
from splip.models.presets import PRESETS

TIMM = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Apple AMLR: research only": "apple-amlr"}


def sizes(config):
    """Side, parameters of both towers and of the image tower, width, tokens of a text: of the architecture, without weights."""
    if config.name.startswith("splip-"):
        clip = PromptedCLIP(config)
        return clip.image_size, clip, clip.visual, clip.embed_dim, clip.text.context_length
    if config.name.startswith("timm:"):
        name, _, side = config.name.removeprefix("timm:").partition("@")
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0, img_size=int(side))
        return int(side), tower, tower, tower.num_features, 0
    with torch.device("meta"):
        model = open_clip.create_model(config.name, device="meta")
    about = open_clip.get_model_config(config.name)
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    return side, model, model.visual, about["embed_dim"], about["text_cfg"].get("context_length", 77)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_as_the_registries_have_them(name):
    preset, config = PRESETS[name], names.resolve(PRESETS[name].model).backbone
    side, whole, tower, width, words = sizes(config)
    count = [sum(p.numel() for p in module.parameters()) for module in (whole, tower)]
    found = (side, *count, width, words)
    assert found == (
        preset.pixels, preset.parameters, preset.image_parameters, preset.dimensions, preset.words
    )  # fmt: skip
    if config.pretrained:
        assert config.pretrained in open_clip.list_pretrained_tags_by_model(config.name)
    if preset.timm is not None:
        theirs = timm.get_pretrained_cfg(preset.timm)
        assert theirs is not None
        if "timm" in preset.source:
            assert theirs.license == TIMM[preset.licence]


def test_the_list(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = cli("models")
    assert code == 0 and all(name in out and preset.model in out for name, preset in PRESETS.items())
    rows = json.loads(cli("models", "--json")[1])["models"]
    assert [row["name"] for row in rows] == list(PRESETS) and not any(row["here"] for row in rows)


def test_times_are_kept_for_this_machine(cli, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "SECONDS", 0.0)
    seen = []
    encode = PromptedCLIP.encode_visual
    monkeypatch.setattr(PromptedCLIP, "encode_visual", lambda self, x: seen.append(len(x)) or encode(self, x))
    built = []
    init = PromptedCLIP.__init__
    monkeypatch.setattr(PromptedCLIP, "__init__", lambda self, c: built.append(c) or init(self, c))
    code, out, _ = cli("models", "--measure", "splip-tiny", "--threads", "1")
    assert code == 0 and seen == [models.PICTURES] * (1 + models.LEAST)
    assert built == [BackboneConfig("splip-tiny", "random")]  # nothing is downloaded
    here = {row["name"]: row["here"] for row in json.loads(cli("models", "--json")[1])["models"]}
    assert (
        here["splip-tiny"]["ms"] > 0
        and here["splip-tiny"]["weights"] == "random"
        and here["splip-tiny"]["threads"] == 1
    )
    assert here["vit-b-32"] is None and f"{here['splip-tiny']['ms']:.1f}" in out
    with monkeypatch.context() as patch:
        patch.setattr(models, "_machine", lambda: "another")
        assert not any(row["here"] for row in json.loads(cli("models", "--json")[1])["models"])
    for damaged in ("", "[]", "{", json.dumps({models._machine(): {"splip-tiny": 3, "x": {"ms": "y"}}})):
        (tmp_path / "splip/models.json").write_text(damaged)
        assert cli("models")[0] == 0
    assert "--measure vit: no such name; splip-tiny-3, splip-tiny-2, splip-tiny, vit-b-32" in refused(
        "models", "--measure", "vit"
    )


def test_what_cannot_be_built_is_said(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "PRESETS", {"x": PRESETS["vit-b-32"], "splip-tiny": PRESETS["splip-tiny"]})
    monkeypatch.setattr(models, "SECONDS", 0.0)
    init = PromptedCLIP.__init__

    def fails(self, config):
        if config.name == "ViT-B-32":
            raise models.UserError("no room")
        init(self, config)

    monkeypatch.setattr(PromptedCLIP, "__init__", fails)
    code, out, err = cli("models", "--measure")
    assert code == 1 and err == "splip: x: not measured: no room\n" and "splip-tiny" in out
