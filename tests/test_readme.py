"""What README.md and docs/ say: commands that parse, numbers that were measured, links that lead somewhere."""

import contextlib
import functools
import http.server
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from splip import __version__
from splip.cli.main import VERBS, parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").is_file() else ""
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
}
# Made when the pages are built; the strict build checks the links to them.
MADE = re.compile(
    r"docs/(reference/(commands|python)/[\w-]+|reference/http|reference/environment|changelog|contributing)\.md"
)


def blocks(text, language):
    """The code blocks of a page that are marked with a language, those in lists and notes too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def shell_lines(text):
    """The lines of a page's shell blocks, continued ones in one piece, a loop's variable filled in."""
    for body in blocks(text, "bash"):
        variables = dict(re.findall(r"^for (\w+) in (\S+)", body, re.MULTILINE))
        for line in body.replace("\\\n", " ").splitlines():
            yield re.sub(r"\$(\w+)", lambda m, known=variables: known.get(m[1], m[0]), line.strip())


def commands():
    """``(page, verb, arguments)`` of all that calls splip."""
    for page, text in PAGES.items():
        for line in shell_lines(text):
            if found := re.match(r"splip ((?:data |index )?[\w-]+)(.*)", line):
                yield page, found[1], found[2]
            elif found := re.search(r"-m splip\.train(.*)", line):
                yield page, "train", found[1]


COMMANDS = list(dict.fromkeys(commands()))


@pytest.fixture
def benchmark(monkeypatch):
    """Scripts of benchmarks/ as modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


# ---- commands and code ----


@pytest.mark.parametrize(("page", "verb", "rest"), COMMANDS, ids=lambda c: c)
def test_commands_parse(page, verb, rest, tmp_path, monkeypatch):
    assert verb in VERBS
    monkeypatch.chdir(tmp_path)
    for path in re.findall(r"--config (\S+\.yaml)", rest):  # of a run
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text("{}")
    with pytest.raises(SystemExit) if "--help" in rest else contextlib.nullcontext():
        parse(verb, shlex.split(rest.partition(" > ")[0], comments=True))


def test_every_verb_is_shown():
    assert {verb for _, verb, _ in COMMANDS} == set(VERBS) - {"demo"}  # that one is `make demo`


def test_flags_in_the_text_exist(capsys):
    """`--flag` in a sentence is one of splip's, or of a tool that is named here."""
    known = set()
    for verb in VERBS:
        with pytest.raises(SystemExit):
            parse(verb, ["--help-all"])
        known |= set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    others = {"torchrun": "--node-rank --master-addr --rdzv-backend", "ray": "--generate"}
    scripts = "".join(
        path.read_text(encoding="utf-8") for name in ("benchmarks", "tools") for path in (ROOT / name).glob("*.py")
    )
    known |= (
        set(" ".join(others.values()).split())
        | set(re.findall(r"--[\w-]+", scripts))
        | {"--help", "--config", "--price-host"}
    )
    for page, text in PAGES.items():
        if page == "CHANGELOG.md":
            continue
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", prose):
            if not code.startswith(("pip ", "pytest ")):
                for flag in re.findall(r"(?<!\S)--[\w.-]+", code):
                    assert {flag, flag.replace("_", "-")} & known, f"{page}: {flag}"


def test_imports_work():
    for page, text in PAGES.items():
        for body in blocks(text, "python"):
            compile(body, page, "exec")
            for module, names in re.findall(r"^from (splip[\w.]*) import (.+)$", body, re.MULTILINE):
                for name in names.split(", "):
                    found = importlib.import_module(module)
                    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (
                        f"{page}: {module}.{name}"
                    )


def test_scripts_and_targets_exist():
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for page, text in PAGES.items():
        if page == "CHANGELOG.md":
            continue
        for name in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE):
            assert name in targets, f"{page}: make {name}"
        for path in re.findall(r"(?:^|[ `])((?:tools|benchmarks|tests|python|csrc)/[\w./-]+\w)", text, re.MULTILINE):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_places_in_the_code_exist():
    """`module.name` in the table of what the paper leaves open."""
    where = re.findall(r"\| ([^|]+) \|$", PAGES["docs/paper.md"], re.MULTILINE)
    places = re.findall(r"`(\w+)\.(\w+)`", " ".join(where))
    assert len(places) > 5
    for module, name in places:
        files = [path for path in (ROOT / "python/splip").rglob(f"{module}.{'py' if name != 'py' else name}")]
        found = name == "py" or any(re.search(rf"(def|class) {name}\b", path.read_text("utf-8")) for path in files)
        assert files and found, f"{module}.{name}"


# ---- numbers ----


def test_tables_come_from_the_committed_results(benchmark):
    report = benchmark("report")
    pages = {path: path.read_text(encoding="utf-8") for path in report.pages()}
    for path, text in pages.items():
        assert report.updated(text) == text, f"{path}: run python benchmarks/report.py --update"
    for name in report.TABLES:
        assert sum(text.count(f"<!-- table: {name} -->") for text in pages.values()) == 1, name


def test_the_results_page_comes_from_the_committed_results(benchmark):
    page, text = benchmark("results_page"), PAGES["docs/results.md"]
    assert page.page(benchmark("report").load("sample")) == text, "run python benchmarks/results_page.py"
    assert not re.findall(r"\{\w+\}", text)  # every place was filled


def test_every_row_of_the_results_is_a_configuration(benchmark, tmp_path):
    runs = benchmark("sample_results")
    for _, setting, rows, _ in runs.GROUPS.values():
        for row in rows:
            config = runs.settings(row, setting, 3, tmp_path, tmp_path / "weights", tmp_path)
            assert (config.seed, config.steps, config.layernorm_lr) == (3, 100, 0.01)
    for row, last in runs.TUNING.values():
        runs.settings(row, "category", 0, tmp_path, None, tmp_path, last)


# ---- the pages ----


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250
    assert len(re.findall(r"!\[", README)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if not path or re.match(r"https?://|mailto:", path):
            continue
        place = Path(os.path.normpath((ROOT / page).parent / path))
        assert place.exists() or MADE.fullmatch(str(place.relative_to(ROOT))), f"{page}: {target}"


def test_every_picture_is_shown():
    shown = {Path(target).name for text in PAGES.values() for target in re.findall(r"!\[.*?\]\((.+?)\)", text)}
    assert {path.name for path in (ROOT / "docs/pictures").iterdir()} == shown | {"logo.svg"}


def test_paragraphs_stand_in_one_place_only():
    """What the README says is not said again in docs/."""
    seen = {}
    for page, text in PAGES.items():
        for part in re.sub(r"```.*?```|<!-- table.*?<!-- end -->", "", text, flags=re.DOTALL).split("\n\n"):
            words = " ".join(part.split())
            if len(words) > 200:
                assert words not in seen, f"{page} and {seen[words]}: {words[:80]}"
                seen[words] = page


def test_the_citation_has_the_version():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings", reason="needs pip install 'splip[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.mark.exhaustive
def test_the_reference_is_whole(site):
    for verb in VERBS:
        page = (site / f"reference/commands/splip-{verb.split()[0]}.html").read_text(encoding="utf-8")
        assert f"splip {verb}</h" in page or f"splip {verb}<a" in page, verb
    assert "--text-weight" in (site / "reference/commands/splip-search.html").read_text(encoding="utf-8")
    gallery = (site / "reference/python/gallery.html").read_text(encoding="utf-8")
    assert "search_vectors" in gallery and ":class:" not in gallery
    http_page = (site / "reference/http.html").read_text(encoding="utf-8")
    assert "POST /v1/search/batch" in http_page and "text_weight" in http_page


@pytest.mark.exhaustive
def test_the_pages_ask_no_other_host(site):
    """In a browser, at the width of a phone and of a desk, in the light and in the dark; and nothing sticks out."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'splip[test]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, e.g. apt install chromium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, asked, wrong = f"http://127.0.0.1:{server.server_port}/", [], []
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in ((390, "dark"), (1440, "light")):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
            for path in sorted(site.rglob("*.html")):
                page.goto(address + str(path.relative_to(site)))
                over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert over <= 0, f"{path} is {over} pixels wider than a window of {width}"
        browser.close()
        server.shutdown()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))] and not wrong
