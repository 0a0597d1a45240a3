import re
import subprocess
import sys
from pathlib import Path

import pytest

import splip
from splip.cli import help
from splip.cli.main import VERBS, parse, parser


def test_usage_names_every_verb(cli):
    code, out, _ = cli("--help")
    assert code == 0 and all(verb in out for verb in VERBS)
    assert cli("--version")[1].strip() == f"splip {splip.__version__}"
    assert cli()[0] == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(verb, ["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: splip {verb}" in out and "examples:" in out


@pytest.mark.parametrize("verb", help.COMMON)
def test_help_in_two_levels(verb, capsys, monkeypatch):
    """Most people need a screen of options; the others are one step away, and none is lost there."""
    monkeypatch.setenv("COLUMNS", "100")
    shown = []
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            parse(verb, [word])
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    short = set(re.findall(r"^  (--[a-z][\w.-]*)", shown[0], re.MULTILINE))
    assert short == set(help.COMMON[verb])
    wanted = {action.option_strings[0] for action in parser(verb)._actions if action.option_strings} - {"-h"}
    assert wanted <= set(re.findall(r"--[a-z][\w.-]*", shown[1])) and len(wanted) > len(short)
    assert len(shown[0].splitlines()) < 90 and f"all {len(wanted)} options: splip {verb} --help-all" in shown[0]
    assert max(map(len, shown[0].partition("common options:")[2].splitlines())) <= 100


def test_help_knows_the_defaults_of_a_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("lr: 0.125\n")
    with pytest.raises(SystemExit):
        parse("train", ["--config", str(tmp_path / "c.yaml"), "--help"])
    assert "(default: 0.125)" in capsys.readouterr().out


def test_help_is_light():
    """The overview must not wait for torch or tyro."""
    code = "import sys, splip.cli.main as c; c.main(['--help']); print(sorted({'torch', 'tyro', 'yaml'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")
    code = "import sys, splip.config; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"


def test_defaults_then_file_then_flags(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 0.5\nseed: 4\nprompts: {depth: 2, text_tokens: 3}\n")
    parsed = parse("train", ["--config", str(tmp_path / "c.yaml"), "--seed", "9", "--prompts.depth", "1"])
    assert (parsed.lr, parsed.seed, parsed.prompts.depth, parsed.prompts.text_tokens) == (0.5, 9, 1, 3)
    assert parsed.batch_size == 64
    both = parse("train", ["--config", str(tmp_path / "c.yaml"), "--seed", "9", "--config=clip-at"])
    assert (both.method, both.lr, both.seed) == ("clip-at", 1e-4, 9)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["frobnicate"], "unknown verb 'frobnicate'; choose one of: train, pretrain, eval,"),
        (["serach", "x"], "unknown verb 'serach'; did you mean 'search'?"),
        (["idnex", "add", "x"], "unknown verb 'idnex add'; did you mean 'index add'?"),
        (["index", "ad"], "unknown verb 'index ad'; did you mean 'index add'?"),
        (["index", "frob"], "unknown verb 'index frob'; choose one of: index add,"),
        (
            ["search", "--galery", "g"],
            "Unrecognized options: --galery, g; did you mean --gallery? (see splip search --help)",
        ),
        (["train", "--loss.margn", "3"], "did you mean --loss.margin?"),
        (["data"], "unknown verb 'data'; choose one of: data sample, data check"),
        (["train", "--speed", "3"], "Unrecognized options: --speed"),
        (["train", "--steps", "x"], "--steps"),
        (["train", "--data.fit", "x"], "invalid choice 'x' for argument '--data.fit'"),
        (["train", "--config", "nowhere"], "no configuration nowhere"),
        (["train", "--config"], "--config needs a value"),
        (["train"], "no data: --data.root"),
        (["search", "--gallery", "g"], "--sketch"),
        (["eval", "--checkpoint", "none.pt"], "no checkpoint none.pt"),
        (["eval", "--checkpoint", "none.pt", "--device", "abacus"], "no device abacus"),
        (["eval", "--checkpoint", "none.pt", "--device", "meta"], "no device meta"),
        (["data", "check", "--root", "nowhere"], "nowhere: no such folder"),
        (["data", "sample", "--out", __file__ + "/x"], "Not a directory"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_command_lines(refused, args, message):
    assert message in refused(*args)


def test_search_takes_k(tmp_path):
    assert parse("search", ["--gallery", "g", "--sketch", "a.png", "b.png", "-k", "7"]).k == 7


def test_info(cli):
    code, out, _ = cli("info")
    assert code == 0
    for word in ("splip", "torch", "open_clip_torch", "instruction sets", "cpu kernels", "cuda kernels"):
        assert word in out
    assert f"{splip.__version__} ({Path(splip.__file__).parent})" in out


def test_module_spellings():
    for module in ("splip", "splip.train"):
        run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
        assert run.returncode == 0 and "usage: splip" in run.stdout


def test_warnings_are_one_line():
    code = (
        "import warnings, splip.cli.main as m\n"
        "m.main(['-V'])\n"
        "warnings.warn('runs with GELU, but w.pt was not', RuntimeWarning)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "splip: warning: runs with GELU, but w.pt was not\n"
