"""docs/add-a-method.md does what it says: its files are written as they stand there, and its commands run."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch

from splip.cli.main import VERBS, parse
from splip.models import load_model, read_checkpoint
from splip.plugins import load_plugin

PAGE = (Path(__file__).parents[2] / "docs/add-a-method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=\"([\w.]+)\")?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = {title: text for _, title, text in BLOCKS if title}
COMMANDS = [line for kind, _, text in BLOCKS if kind == "sh" for line in text.splitlines()]
# The tiny tree has no pairs and is no place for a hundred steps.
SMALL = "--data.root tree --data.unseen box cone --data.validation pole --positives class --steps 3 --batch-size 4 \
         --loss.permutations 5 --eval-every 2 --device cpu"


@pytest.fixture
def folder(tmp_path, tree, monkeypatch):
    """The files of the page beside the tiny tree."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(start):
    """A command of the page, as arguments."""
    found = [c for c in COMMANDS if c.startswith(f"splip {start}")]
    assert found, start
    return shlex.split(found[0])[1:]


def test_the_page_has_its_parts():
    assert set(FILES) == {"vpt.py", "vpt.yaml", "tight.py", "tight.yaml"} and len(COMMANDS) == 10


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, folder, plugged):
    args = shlex.split(line)[1:]
    while "--plugin" in args:
        place = args.index("--plugin")
        assert (folder / args[place + 1]).is_file()
        del args[place : place + 2]
    verb = " ".join(args[:2]) if " ".join(args[:2]) in VERBS else args[0]
    parse(verb, args[len(verb.split()) :])


def test_a_method_from_training_to_an_export(folder, cli, refused, plugged):
    train = command("train --plugin vpt.py --config sample --config vpt.yaml")
    assert cli(*train, *SMALL.split())[0] == 0
    best = folder / "runs/vpt/best.safetensors"
    state = read_checkpoint(best)
    assert (state["config"]["method"], state["config"]["extra"]) == ("vpt", {"margin_floor": 0.3})
    assert state["trainable"]["deep"].shape == (4, 4, 192)

    # Another process: it knows the method only if it is told.
    plugged()
    evaluate = command("eval --plugin vpt.py")
    evaluate.remove("--baselines")
    without = [word for word in evaluate if word not in ("--plugin", "vpt.py")]
    message = refused(*without)
    assert (
        "method 'vpt' of runs/vpt/best.safetensors is not known here: name the file that defines it with --plugin"
        in message
    )
    code, out, _ = cli(*evaluate)
    assert code == 0 and "vpt" in out

    python = next(text for kind, title, text in BLOCKS if kind == "python" and not title)
    exec(compile(python, "add-a-method.md", "exec"), {})
    model = load_model(best)
    sketch, photo = model.visual_prompts()
    assert [tuple(p.shape) for p in sketch] == [(4, 192)] * 4
    assert all(torch.equal(a, b) for a, b in zip(sketch, photo, strict=True))

    assert cli(*[w.replace("sample/photo", "tree/photo") for w in command("index add")])[0] == 0
    search = [w.replace("sample/sketch/horse/1f40e-1.png", "tree/sketch/box/0.png") for w in command("search")]
    code, out, _ = cli(*search)
    assert code == 0 and "tree/photo/" in out


def test_a_term_and_negatives(folder, cli, plugged):
    train = command("train --plugin tight.py")
    assert cli(*train, *SMALL.split())[0] == 0
    with open(folder / "runs/tight/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["tight"]) > 0 for row in rows)
    first = {name: float(rows[0][name]) for name in ("triplet", "classification", "jigsaw", "tight", "loss")}
    weighted = first["triplet"] + 0.1 * (first["classification"] + first["jigsaw"] + first["tight"])
    assert first["loss"] == pytest.approx(weighted, abs=1e-4)

    plugged()
    assert load_model(folder / "runs/tight/best.safetensors").config.loss.negatives == "hardest"  # needs no plugin


def test_the_margin_and_the_negatives_by_hand(folder, plugged):
    from splip.models import TrainConfig
    from splip.train.losses import MARGINS, NEGATIVES

    load_plugin("vpt.py"), load_plugin("tight.py")
    similarity = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    got = MARGINS["floored"](torch.tensor([0, 0]), torch.tensor([0, 1]), similarity, TrainConfig())
    assert got.tolist() == pytest.approx([1.0, 0.2])
    photos = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), dim=1)
    allowed = torch.tensor([[False, True, True], [False, False, False]])
    got = NEGATIVES["hardest"](photos[:2], photos[:2], photos, allowed)
    assert got.tolist() == [1, -1]
