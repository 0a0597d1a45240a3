import dataclasses
from pathlib import Path

import pytest

from splip import config
from splip.errors import UserError
from splip.models.config import TrainConfig


def load(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return config.load(TrainConfig, str(tmp_path / "c.yaml"))


def test_file_fills_what_it_names(tmp_path):
    loaded = load(tmp_path, "lr: 2e-3\nsteps: 7\nprompts: {depth: 3}\ndata:\n  root: a/b\n  unseen: [x, y]\n")
    assert loaded.lr == 0.002 and loaded.steps == 7 and loaded.prompts.depth == 3
    assert loaded.data.root == Path("a/b") and loaded.data.unseen == ("x", "y")
    assert loaded.batch_size == TrainConfig().batch_size


def test_round_trip(tmp_path):
    changed = dataclasses.replace(TrainConfig(), lr=0.5, seed=3, out=Path("o"))
    config.save(changed, tmp_path / "c.yaml")
    assert config.load(TrainConfig, str(tmp_path / "c.yaml")) == changed
    assert config.differences(TrainConfig(), changed) == ["out: runs/splip -> o", "lr: 0.001 -> 0.5", "seed: 0 -> 3"]


def test_numbers_by_name(tmp_path):
    """Those that are gone count as differences too."""
    loaded = load(tmp_path, "extra: {a: 1}\nloss: {terms: {mine: 2e-1}}\n")
    assert (loaded.extra, loaded.loss.terms) == ({"a": 1.0}, {"mine": 0.2})
    config.save(loaded, tmp_path / "again.yaml")
    assert config.load(TrainConfig, str(tmp_path / "again.yaml")) == loaded
    changes = ["loss.terms.mine: 0.2 -> None", "extra.a: 1.0 -> None"]
    assert sorted(config.differences(loaded, TrainConfig())) == sorted(changes)


def test_shipped_configurations_load():
    names = config.shipped()
    assert {"sample", "sketchy-2", "clip-at", "ablations/full", "ablations/no-b_vt"} <= set(names)
    for name, file in names.items():
        assert isinstance(config.load(TrainConfig, name), TrainConfig)
        assert file.read_text().startswith("# ")  # its row in a table
        # A row of a table is what it changes: everything it says differs from the defaults.
        if name.startswith("ablations/") and name != "ablations/full":
            assert config.differences(TrainConfig(), config.load(TrainConfig, name))


def test_later_files_win(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1.0\nprompts: {depth: 3, ema: 0.5}\n")
    (tmp_path / "b.yaml").write_text("prompts: {depth: 5}\nloss: {jigsaw: 0}\n")
    loaded = config.load(TrainConfig, str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert (loaded.lr, loaded.prompts.depth, loaded.prompts.ema, loaded.loss.jigsaw) == (1.0, 5, 0.5, 0.0)
    (tmp_path / "b.yaml").write_text("speed: 5\n")
    with pytest.raises(UserError, match=r"b.yaml: unknown key 'speed'"):
        config.load(TrainConfig, str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown key 'learning_rate'; known keys: out, resume"),
        ("prompts: {length: 4}", "unknown key 'prompts.length'; known keys: text_tokens"),
        ("steps: many", "steps must be int, got 'many'"),
        ("steps: 1.5", "steps must be int, got 1.5"),
        ("lr: fast", "lr must be float, got 'fast'"),
        ("lr: true", "lr must be float, got True"),
        ("steps: true", "steps must be int, got True"),
        ("layernorm_lr: false", "layernorm_lr must be float, got False"),
        ("seed: no", "seed must be int, got False"),
        ("loss: {jigsaw: true}", "loss.jigsaw must be float, got True"),
        ("prompts: {depth: yes}", "prompts.depth must be int, got True"),
        ("steps: 3.0", "steps must be int, got 3.0"),
        ("resume: 0", "resume must be bool, got 0"),
        ("train_backbone: 1", "train_backbone must be bool, got 1"),
        ("out: 3", "out must be a path, got 3"),
        ("data: {fit: squash}", "data.fit must be one of pad, stretch, crop, pad-black, got 'squash'"),
        ("data: {unseen: box}", "data.unseen must be a list, got 'box'"),
        ("data: 3", "data must be a mapping, got 3"),
        ("extra: 3", "extra must be a mapping, got 3"),
        ("extra: {1: 2}", "extra must be a mapping, got {1: 2}"),
        ("loss: {terms: {mine: low}}", "loss.terms.mine must be float, got 'low'"),
        ("- 1", "the file must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_rejects(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value) and "c.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_no_such_configuration():
    with pytest.raises(UserError, match="no configuration nowhere: .*sample"):
        config.load(TrainConfig, "nowhere")


def test_quick_gelu_is_a_word_or_a_truth_value(tmp_path):
    for text, value in (("true", "true"), ("false", "false"), ("auto", "auto"), ("'true'", "true")):
        assert load(tmp_path, f"backbone: {{quick_gelu: {text}}}").backbone.quick_gelu == value
    with pytest.raises(UserError, match="backbone.quick_gelu must be one of auto, true, false, got 1"):
        load(tmp_path, "backbone: {quick_gelu: 1}")
