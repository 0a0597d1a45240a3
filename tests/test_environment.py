"""Settings of the service from the environment and from files: one rule, one order, errors that say whose they are."""

from pathlib import Path

import pytest
import yaml

from splip import environment
from splip.cli import main
from splip.errors import UserError
from splip.serve.config import ServeConfig

# Every kind of setting: one text, and what it means.
TEXTS = {
    "SPLIP_SERVE_GALLERY": ("milvus://db:19530/photos", "milvus://db:19530/photos"),
    "SPLIP_SERVE_PORT": ("80", 80),
    "SPLIP_SERVE_SHARDS": ("3", 3),
    "SPLIP_SERVE_WINDOW_MS": ("2e0", 2.0),
    "SPLIP_SERVE_TOKEN_FILE": ("/run/secrets/token", Path("/run/secrets/token")),
    "SPLIP_SERVE_PROTECT": ("all", "all"),
    "SPLIP_SERVE_ALLOW_ROOT": ("/a, /b c", (Path("/a"), Path("/b c"))),
    "SPLIP_SERVE_CORS": ("['https://a.example', \"https://b.example\"]", ("https://a.example", "https://b.example")),
    "SPLIP_SERVE_BEHIND_PROXY": ("Yes", True),
    "SPLIP_SERVE_SHOW_PATHS": ("false", False),
    "SPLIP_SERVE_MODEL": ("none", None),
}


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in environment.os.environ:
        if name.startswith("SPLIP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_option_has_a_variable():
    """Any text that a variable can hold is taken or refused in words; no setting has a kind that cannot be written."""
    known = environment.variables(ServeConfig, "SPLIP_SERVE")
    assert set(known.values()) == set(environment.typing.get_type_hints(ServeConfig)) and set(TEXTS) <= set(known)
    for name, text in ((name, text) for name in known for text in ("1", "x", "a, b", "[", "none", "\t", "1" * 400)):
        try:
            environment.layered(ServeConfig, [], "SPLIP_SERVE", {name: text})
        except UserError as error:
            assert str(error).startswith(f"{name}: ") and "\n" not in str(error) and len(str(error)) < 200


@pytest.mark.parametrize("variable", TEXTS)
def test_texts_become_values(variable, monkeypatch):
    text, want = TEXTS[variable]
    monkeypatch.setenv(variable, text)
    got = getattr(main.parse("serve", []), environment.variables(ServeConfig, "SPLIP_SERVE")[variable])
    assert got == want and type(got) is type(want)


def test_flags_win_over_variables_those_over_files(tmp_path, monkeypatch):
    Path("one.yaml").write_text("port: 1\nmax_k: 1\nmax_batch: 1\nallow_host: [a]\nbehind_proxy: true\n")
    Path("two.yaml").write_text("port: 2\nmax_batch: 2\n")
    monkeypatch.setenv("SPLIP_SERVE_PORT", "3")
    monkeypatch.setenv("SPLIP_SERVE_MAX_K", "3")
    monkeypatch.setenv("SPLIP_SERVE_ALLOW_HOST", "b,c")
    got = main.parse("serve", ["--config", "one.yaml", "--config=two.yaml", "--port", "4", "--no-behind-proxy"])
    assert (got.port, got.max_k, got.max_batch, got.max_queue) == (4, 3, 2, ServeConfig().max_queue)
    assert got.allow_host == ("b", "c") and not got.behind_proxy
    # Files by the variable; a flag that names some puts those in their place.
    monkeypatch.setenv("SPLIP_SERVE_CONFIG", "one.yaml")
    assert (got := main.parse("serve", [])).max_batch == 1 and got.behind_proxy and got.port == 3
    assert not main.parse("serve", ["--config", "two.yaml"]).behind_proxy


def test_an_empty_variable_sets_nothing(monkeypatch):
    """Compose hands on those that nobody gave as empty texts."""
    for variable in (*TEXTS, "SPLIP_SERVE_CONFIG"):
        monkeypatch.setenv(variable, "")
    assert main.parse("serve", []) == ServeConfig()


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SPLIP_SERVE_TOKENFILE", "x", "SPLIP_SERVE_TOKENFILE: no such setting; did you mean SPLIP_SERVE_TOKEN_FILE?"),
        ("SPLIP_SERVE_CONFG", "x", "SPLIP_SERVE_CONFG: no such setting; did you mean SPLIP_SERVE_CONFIG?"),
        ("SPLIP_SERVE_ZZZZZZZZZZZZ", "x", "SPLIP_SERVE_ZZZZZZZZZZZZ: no such setting; see splip serve --help"),
        ("SPLIP_SERVE_SERVICE_HOST", "10.0.0.1", "SPLIP_SERVE_SERVICE_HOST: Kubernetes sets it for a Service of this name; "
         "enableServiceLinks: false in the pod ends that"),
        ("SPLIP_SERVE_PORT", "tcp://10.0.0.1:80", "SPLIP_SERVE_PORT: must be a whole number, got 'tcp://10.0.0.1:80'"),
        ("SPLIP_SERVE_PORT", "9" * 30, "SPLIP_SERVE_PORT: port is too large: " + "9" * 30),
        ("SPLIP_SERVE_WINDOW_MS", "soon", "SPLIP_SERVE_WINDOW_MS: window_ms must be float, got 'soon'"),
        ("SPLIP_SERVE_BEHIND_PROXY", "perhaps", "SPLIP_SERVE_BEHIND_PROXY: must be true or false, got 'perhaps'"),
        ("SPLIP_SERVE_PROTECT", "some", "SPLIP_SERVE_PROTECT: protect must be one of writes, all, got 'some'"),
        ("SPLIP_SERVE_CORS", "[a", "SPLIP_SERVE_CORS: not a list: '[a'; write a, b or ['a', 'b']"),
        ("SPLIP_SERVE_CONFIG", "no.yaml", "SPLIP_SERVE_CONFIG: no.yaml: no such file"),
        # Found wrong only when it is used, and blamed all the same.
        ("SPLIP_SERVE_WINDOW_MS", "-1", "SPLIP_SERVE_WINDOW_MS: --window-ms must be between 0 and 3600"),
        ("SPLIP_SERVE_TOKEN_FILE", "no", "SPLIP_SERVE_TOKEN_FILE: --token-file no: No such file or directory"),
        ("SPLIP_SERVE_CORS", "https://a.example, b", "SPLIP_SERVE_CORS: --cors b: write an origin, e.g. https://example.org"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_variable(variable, text, message, monkeypatch, capsys):
    monkeypatch.setenv(variable, text)
    assert main.main(["serve"]) == 2
    assert capsys.readouterr().err == f"splip: error: {message}\n"


def test_the_one_who_said_it_is_blamed(monkeypatch, capsys):
    """A flag over a variable over the last file that has it."""

    def error(*args):
        assert main.main(["serve", *args]) == 2
        return capsys.readouterr().err.removeprefix("splip: error: ")

    Path("a.yaml").write_text("max_k: 0\nwindow_ms: 5\n")
    Path("b.yaml").write_text("max_k: -1\n")
    assert error("--config", "a.yaml") == "a.yaml: --max-k must be above zero\n"
    assert error("--config", "a.yaml", "--config", "b.yaml") == "b.yaml: --max-k must be above zero\n"
    monkeypatch.setenv("SPLIP_SERVE_MAX_K", "0")
    assert error("--config", "a.yaml").startswith("SPLIP_SERVE_MAX_K: --max-k")
    for flag in (["--max-k", "0"], ["--max-k=0"], ["--max_k", "0"]):
        assert error("--config", "a.yaml", *flag) == "--max-k must be above zero\n"
    monkeypatch.delenv("SPLIP_SERVE_MAX_K")
    Path("a.yaml").write_text("prot: 1\n")
    assert error("--config", "a.yaml").startswith("a.yaml: unknown key 'prot'; known keys: gallery, host")
    assert error("--config", "c.yaml") == "--config c.yaml: no such file\n"


def test_help_says_so_whatever_the_environment_holds(monkeypatch, capsys):
    monkeypatch.setenv("SPLIP_SERVE_PORT", "wrong")
    with pytest.raises(SystemExit):
        main.parse("serve", ["--help"])
    assert "SPLIP_SERVE_TOKEN_FILE is --token-file" in " ".join(capsys.readouterr().out.split())
    assert main.parse("search", ["--text", "a"]).text  # other verbs do not read them


def test_a_file_may_be_what_a_run_of_it_would_write():
    """The settings of a service, saved, give the same service."""
    Path("all.yaml").write_text(yaml.safe_dump(environment.config.to_dict(ServeConfig(port=5, cors=("*",)))))
    assert main.parse("serve", ["--config", "all.yaml"]) == ServeConfig(port=5, cors=("*",))
