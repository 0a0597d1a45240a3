"""What wheels and images are made of: lists that must agree, settings that must exist. Nothing is built here."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from splip import environment
from splip.cli import main
from splip.serve.config import ServeConfig

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "Dockerfile").is_file(), reason="not in a checkout")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8") if (ROOT / "Dockerfile").is_file() else ""
VARIABLES = environment.variables(ServeConfig, "SPLIP_SERVE")


@pytest.fixture(scope="module")
def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheels_are_built_for_the_pythons_that_splip_says(project):
    """requires-python, the classifiers, and what cibuildwheel builds are one list."""
    said = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["project"]["classifiers"]))
    built = [re.fullmatch(r"cp3(\d+)-\*", name)[1] for name in project["tool"]["cibuildwheel"]["build"]]
    assert said == built == [str(n) for n in range(int(built[0]), int(built[-1]) + 1)]
    assert project["project"]["requires-python"] == f">=3.{built[0]}"
    assert project["tool"]["ruff"]["target-version"] == f"py3{built[0]}"


def test_wheels_hold_no_cuda_code_and_are_tried(project):
    settings = project["tool"]["cibuildwheel"]
    for table in (settings, *(settings[system] for system in ("linux", "macos"))):
        assert table.get("environment", settings["environment"])["SPLIP_CUDA"] == "off"
    assert "tools/check_wheel.py" in settings["test-command"] and (ROOT / "tools/check_wheel.py").is_file()


def test_the_release_builds_what_is_configured(project):
    """Each architecture once; only the job that publishes may write or sign, and only for a tag."""
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    jobs = release["jobs"]
    rows = jobs["wheels"]["strategy"]["matrix"]["include"]
    settings = project["tool"]["cibuildwheel"]
    wanted = [arch for system in ("linux", "macos") for arch in settings[system]["archs"]]
    assert sorted(row["archs"] for row in rows) == sorted(wanted)
    assert release["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["if"] == "github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v')"
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    uses = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", name) for name in uses), uses


def test_a_wheel_answers_without_torch():
    """The check that every built wheel goes through, on this build; it loads nothing but the core."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); assert not {'torch', 'numpy'} & {*sys.modules}"
    command = [sys.executable, "-c", code, str(ROOT / "tools/check_wheel.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "scalar" in done.stdout and "agree" in done.stdout, done.stderr


# ---- images ----


def test_the_image_needs_what_splip_needs(project, monkeypatch):
    """Its list is made of pyproject.toml's; what it leaves out nothing that serves an export imports first."""
    pytest.importorskip("tomllib")
    import requirements

    (extras, without) = re.search(r"--extras (.+?) --without (.+?) >", DOCKERFILE).groups()
    got = requirements.requirements(extras.split(), without.split())
    packages = {requirements.package(line) for line in got}
    assert packages == {
        requirements.package(line)
        for line in (*project["project"]["dependencies"], *(x for e in extras.split() for x in project["project"]["optional-dependencies"][e]))
    } - {requirements.package(name) for name in without.split()}  # fmt: skip
    assert {"fastapi", "numpy", "tokenizers"} <= packages and not {"torch", "timm", "open-clip-torch"} & packages
    with pytest.raises(SystemExit, match="no extra sreve"):
        requirements.requirements(["sreve"], [])
    with pytest.raises(SystemExit, match="torhc is not among"):
        requirements.requirements([], ["torhc"])
    assert {"onnx", "openvino", "nncf"} <= {
        requirements.package(line) for line in requirements.requirements(["int8"], [])
    }


def stages():
    """Name of each stage, and its lines."""
    parts = re.split(r"^FROM (.+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {head.split(" AS ")[1]: body for head, body in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_starts_as_a_user_and_is_asked_how_it_is(target):
    body = re.sub(r"\\\n", "", stages()[target])
    for name in re.findall(r"SPLIP_SERVE_\w+(?==)", body):
        assert name in VARIABLES, name
    assert re.search(r"^USER ([1-9]\d*):\1$", body, re.MULTILINE)
    check = json.loads(re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", body, re.MULTILINE)[1])
    assert check[:2] == ["python3", "-c"] and ast.parse(check[2])
    verb = json.loads(re.search(r"^CMD (\[.*\])$", body, re.MULTILINE)[1])
    assert json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", body, re.MULTILINE)[1]) == ["splip"] and verb == ["serve"]


def test_the_image_is_given_what_it_copies():
    """.dockerignore lets through every file that the wheel is made of."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    let = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let)
    manifest = (ROOT / "setup.py").read_text(encoding="utf-8") + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {
        "python",
        "export",
        "csrc",
        "cmake",
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    } <= let
    assert "tools/requirements.py" in let and "README.md" in manifest


def test_compose_says_commands_that_parse(monkeypatch):
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    _, verb, *args = services["index"]["command"]
    added = main.parse(f"index {verb}", args)
    assert added.folders == (Path("/pictures"),) and added.model == "/opt/model"
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["build"]["target"] in stages()
        for name, value in service.get("environment", {}).items():
            assert name in VARIABLES
            monkeypatch.setenv(name, value)
    main.parse("serve", [])
    assert services["serve"]["ports"][0].startswith("127.0.0.1:")  # for this machine, unless asked
