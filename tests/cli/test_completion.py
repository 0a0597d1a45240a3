"""What shells complete: run by the shells themselves, where they are."""

import shutil
import subprocess

import pytest

from splip.cli import completion, main


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(getattr(completion, shell)())
    return folder


def in_bash(scripts, *words, cwd="/"):
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"source {scripts}/bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _splip; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    assert not run.stderr
    return run.stdout.split()


def test_bash(scripts, tmp_path):
    (tmp_path / "drawing.png").touch()
    assert in_bash(scripts, "splip", "se") == ["search", "serve"]
    assert in_bash(scripts, "splip", "index", "") == [*completion.words()["index"], "--help"]
    assert in_bash(scripts, "splip", "search", "--sk") == ["--sketch"]
    assert "-k" in in_bash(scripts, "splip", "search", "-")
    assert in_bash(scripts, "splip", "index", "add", "--label-from", "t") == ["top"]
    assert in_bash(scripts, "splip", "train", "--setting", "") == ["category", "fine-grained"]
    assert in_bash(scripts, "splip", "train", "--config", "dr", cwd=tmp_path) == ["drawing.png"]
    assert "--plugin" in in_bash(scripts, "splip", "eval", "--p")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish(scripts):
    def complete(line):
        run = subprocess.run(
            ["fish", "-c", f"source {scripts}/fish; complete -C '{line}'"], capture_output=True, text=True, check=True
        )
        return [one.split("\t")[0] for one in run.stdout.splitlines()]

    assert complete("splip se") == ["search", "serve"]
    assert complete("splip index ad") == ["add"]
    assert complete("splip index add --label-from t") == ["top"]
    assert "--sketch" in complete("splip search --sk")


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh(scripts):
    """The first TAB of a shell completes: the file is found by its name on fpath."""
    (scripts / "fpath").mkdir()
    (scripts / "fpath" / "_splip").write_text((scripts / "zsh").read_text())
    code = (
        "zmodload zsh/zpty; zpty z zsh -f -i; zpty -w z 'PS1=; unsetopt zle_bracketed_paste'; "
        f"zpty -w z 'fpath=({scripts}/fpath $fpath); autoload -U compinit; compinit -u -D; echo re''ady'; "
        "zpty -r z out '*ready*'; zpty -w -n z $'splip comple\\t'; "
        "for i in {1..60}; do sleep .1; zpty -rt z out && print -rn -- $out; done; zpty -d z"
    )
    run = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert "splip completion" in run.stdout, run


def test_every_option_has_a_line():
    """Of each verb; its help is one sentence."""
    for verb in main.VERBS:
        for one in completion.options(verb):
            assert one.help and "\n" not in one.help and one.names
    of = {name: one for one in completion.options("search") for name in one.names}
    assert of["--gallery"].takes and not of["--json"].takes and of["--k"] is of["-k"]


def test_verb(cli, refused):
    code, out, _ = cli("completion", "bash")
    assert code == 0 and out == completion.bash()
    assert "tcsh" in refused("completion", "tcsh")
