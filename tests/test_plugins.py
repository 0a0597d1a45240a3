"""Names that others add: who may add them, and that nothing else makes code run."""

import subprocess
import sys

import pytest
import torch

from splip import plugins
from splip.errors import UserError
from splip.models import Retriever, TrainConfig, build, load_model, register
from splip.models.config import BackboneConfig, LossConfig
from splip.models.registry import METHODS
from splip.plugins import Registry, load_plugin

METHOD = """
from splip.models import Retriever, register

@register("mine")
class Mine(Retriever):
    pass
"""


@pytest.fixture
def file(tmp_path):
    """A plugin that leaves a trace when it runs."""
    path = tmp_path / "mine.py"
    trace = tmp_path / "ran"
    path.write_text(f"{METHOD}\nwith open({str(trace)!r}, 'a') as f: f.write('x')\n")
    return path


def ran(file):
    trace = file.parent / "ran"
    return trace.read_text() if trace.exists() else ""


def test_a_name_is_given_once():
    registry = Registry("colour")

    @registry.register("red")
    def first(): ...

    def second(): ...

    with pytest.raises(ValueError, match="colour 'red' is registered already, by .*first"):
        registry.register("red")(second)
    assert registry["red"] is first and registry.names() == ["red"]
    registry.register("red")(first)  # a cell of a notebook that is run again

    with pytest.raises(UserError, match="colour: there is no 'blue', only red; --plugin FILE.py adds others"):
        registry["blue"]


def test_methods_of_the_package_cannot_be_replaced(plugged):
    with pytest.raises(ValueError, match="method 'splip' is registered already, by splip.models.splip.SpLIP"):

        @register("splip")
        class Other(Retriever):
            pass

    assert METHODS["splip"].__name__ == "SpLIP"


def test_built_in_names():
    assert {"splip", "zero-shot", "clip-ln", "clip-at", "maple", "dp-clip"} <= set(METHODS.names())
    code = (
        "from splip.models import SpLIP, build; from splip.models.registry import METHODS; print(len(METHODS.names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"  # whichever of the modules comes first


def test_a_class_builds_its_own_method_only():
    config = TrainConfig(method="maple", backbone=BackboneConfig(name="splip-tiny"))
    with pytest.raises(ValueError, match=r"SpLIP is method splip, not maple: use build\(\)"):
        METHODS["splip"](config, ["dog"])


def test_a_file_is_run_once(file, plugged):
    load_plugin(file)
    load_plugin(str(file))
    assert ran(file) == "x" and "mine" in METHODS
    assert plugins.loaded == [file.resolve()]


def test_two_files_of_one_name(file, tmp_path, plugged):
    load_plugin(file)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mine.py"
    other.write_text(METHOD)
    with pytest.raises(UserError, match=r"other/mine.py, line 4: ValueError: method 'mine' is registered already"):
        load_plugin(other)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "--plugin .*none.py: there is no such file"),
        ("a.txt", "x", "--plugin .*a.txt: not a Python file"),
        ("a.py", "x = 1\ny = 1 / 0\n", "--plugin .*a.py, line 2: ZeroDivisionError: division by zero"),
        ("b.py", "x = 1\ndef (\n", "--plugin .*b.py, line 2: SyntaxError"),
    ],
)
def test_files_that_cannot_be_run(tmp_path, refused, plugged, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugin(tmp_path / name)
    assert "--plugin" in refused("info", "--plugin", tmp_path / name)


@pytest.fixture
def checkpoint(file, tmp_path, plugged):
    """Of a method that this process does not know any more."""
    load_plugin(file)
    model = build(
        TrainConfig(method="mine", backbone=BackboneConfig(name="splip-tiny"), loss=LossConfig(jigsaw=0)), ["dog"]
    )
    torch.save(model.checkpoint(), tmp_path / "mine.pt")
    plugged()
    (tmp_path / "ran").unlink()
    return tmp_path / "mine.pt"


def test_a_checkpoint_of_an_unknown_method(checkpoint, file):
    with pytest.raises(UserError, match="^method 'mine' of .*mine.pt is not known here: name the file .* --plugin"):
        load_model(checkpoint)
    load_plugin(file)
    assert load_model(checkpoint).config.method == "mine"


def test_a_checkpoint_runs_no_code(checkpoint, file, monkeypatch):
    """Whatever it names: a file beside it, a path, a module that could be imported."""
    monkeypatch.chdir(file.parent)
    monkeypatch.syspath_prepend(file.parent)
    state = torch.load(checkpoint, weights_only=True)
    for name in ("mine", "mine.py", str(file), "mine:Mine", "mine.Mine"):
        state["config"]["method"] = name
        torch.save({**state, "plugins": [str(file)], "plugin": str(file)}, checkpoint)
        with pytest.raises(UserError, match="is not known here"):
            load_model(checkpoint)
    state["config"] |= {"method": "clip-ln", "plugins": [str(file)]}
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match="unknown key 'plugins'"):
        load_model(checkpoint)
    assert ran(file) == ""


def test_settings_run_no_code(file, refused, tmp_path, plugged):
    (tmp_path / "c.yaml").write_text(f"method: {file}\ndata: {{root: {tmp_path}}}\n")
    assert "method: there is no" in refused("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    (tmp_path / "c.yaml").write_text(f"plugins: [{file}]\n")
    assert "unknown key 'plugins'" in refused("train", "--config", tmp_path / "c.yaml")
    assert ran(file) == ""


def test_the_flag_may_stand_anywhere(cli, file, plugged):
    assert cli("--plugin", file, "info")[0] == cli("info", f"--plugin={file}")[0] == 0
    assert ran(file) == "x"
    assert cli("--plugin", file, "--help")[0] == 0 and cli("--plugin", file)[0] == 2


def test_processes_of_a_sweep_know_the_plugins(file, plugged):
    from splip.cli import sweep

    threads = torch.get_num_threads()
    sweep._start(threads, (file,))
    assert "mine" in METHODS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with an entry point."""
    site = tmp_path / "site"
    about = site / "theirs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[splip.plugins]\nmine = theirs_of_a_test\n")
    monkeypatch.syspath_prepend(site)
    yield site / "theirs_of_a_test.py"
    sys.modules.pop("theirs_of_a_test", None)


def test_an_installed_package_needs_no_flag(package, checkpoint):
    package.write_text(METHOD)
    assert METHODS["clip-ln"] and "theirs_of_a_test" not in sys.modules  # not before it is needed
    assert load_model(checkpoint).config.method == "mine"
    assert type(load_model(checkpoint)).__module__ == "theirs_of_a_test"


def test_an_installed_package_that_is_broken(package, plugged):
    package.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"plugin mine \(theirs_of_a_test\): ModuleNotFoundError: .*nothing_of_this"):
        METHODS["mine"]
