"""The plan of the house: what may import what, how long files and functions are, what a wing shows."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a wing imports what stands before it, never what stands behind.
GROUND = ("_lazy", "errors", "client", "disk", "config", "environment", "plugins", "progress", "report", "distributed")
WINGS = ("ops", "images", "data", "models", "encoders", "evaluation", "train", "gallery", "milvus", "cluster", "serve")
ORDER = ("_C", "splip", *GROUND, *WINGS, "cli", "export")
LINES, FUNCTION = 500, 80


def files(*folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = (
        path.relative_to(ROOT / "python").parts if "python" in path.parts else ("splip", *path.relative_to(ROOT).parts)
    )
    name = ".".join(parts).removesuffix(".py")
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of splip in a file, those in functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "splip")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            if module.split(".")[0] == "splip":
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield node.lineno, inner if is_module(inner) else module


def is_module(name: str) -> bool:
    return name in MODULES or name == "splip._C"


SOURCES = files("python/splip", "export")
MODULES = {module_of(path): path for path in SOURCES}


def wing(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "splip"


def test_wings_import_downwards_only():
    wrong = []
    for name, path in MODULES.items():
        if path.name == "__main__.py" or name == "splip":  # doors: they lead to every floor
            continue
        for line, other in imports(path):
            if ORDER.index(wing(other)) > ORDER.index(wing(name)):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {wing(name)} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    graph = {
        name: {other for _, other in imports(path) if other != name and not name.startswith(other + ".")}
        for name, path in MODULES.items()
        if path.name not in ("__main__.py", "__init__.py")
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_nobody_takes_the_private_names_of_another_wing():
    wrong = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("splip.")
                and wing(node.module) != wing(name)
            ):
                wrong += [f"{path}:{node.lineno}: {a.name}" for a in node.names if a.name.startswith("_")]
    assert not wrong, "\n".join(wrong)


def reason_at_the_top(text: str) -> bool:
    """Whether a file's first lines say why it is long: "Long because ..."."""
    return "Long because" in text[:2000]


def test_files_are_short():
    sources = files("python/splip", "export", "benchmarks")
    sources += [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    long = {
        str(p.relative_to(ROOT)): text.count("\n")
        for p in sources
        if not reason_at_the_top(text := p.read_text(encoding="utf-8"))
    }
    assert not {name: count for name, count in long.items() if count > LINES}


def test_functions_are_short():
    long = []
    for path in files("python/splip", "export", "benchmarks", "tools"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {count} lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", [*WINGS, "cli"])
def test_a_wing_says_what_it_is_for_and_shows_its_names(name):
    path = ROOT / "python/splip" / name / "__init__.py"
    package = importlib.import_module(f"splip.{name}")
    assert package.__doc__ and len(package.__doc__.splitlines()[0]) > 20
    shown = getattr(package, "__all__", [])
    modules = {p.stem for p in path.parent.glob("*.py")}
    assert not modules & set(shown), "a name that is a module's too"
    for entry in shown:
        assert getattr(package, entry) is not None
    promised = [
        alias.asname
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"splip.{name}.")
        for alias in node.names
    ]
    if name != "ops":
        assert sorted(promised) == shown, "what type checkers see and what is imported differ"


def test_importing_splip_imports_nothing_heavy():
    code = (
        "import sys, time; began = time.perf_counter(); import splip; took = time.perf_counter() - began\n"
        "assert not {'torch', 'numpy', 'PIL', 'open_clip', 'tyro', 'yaml'} & set(sys.modules), sorted(sys.modules)\n"
        "assert splip.Gallery.__module__ == 'splip.gallery.gallery' and 'Encoder' in dir(splip)\n"
        "assert splip.ops is sys.modules['splip.ops']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_there_are_refused():
    import splip

    with pytest.raises(AttributeError, match="module 'splip' has no attribute 'Galery'"):
        splip.Galery  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Galery'"):
        from splip.gallery import Galery  # noqa: F401
