"""What the documentation takes from the program: commands from the parser, HTTP from OpenAPI, Python from docstrings.

MkDocs calls ``on_config`` and ``on_files``. Nothing that is made here is committed.
"""

import html
import importlib
import inspect
import re
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import splip
from splip.cli import main
from splip.serve import app
from splip.serve.config import ServeConfig

ROOT = Path(__file__).resolve().parent.parent
LINKS = tempfile.TemporaryDirectory(prefix="splip-docs-")

# A page for each wing of the package: its name, what it is for, and its modules.
WINGS: list[tuple[str, str, list[str]]] = [
    ("gallery", "Folders of embedded pictures, searched exactly while they grow.", ["splip.gallery"]),
    ("encoders", "Pictures and texts to vectors, through torch or an engine.", ["splip.encoders"]),
    (
        "models",
        "CLIP with prompt slots, SpLIP and the baselines.",
        [
            "splip.models",
            "splip.models.prompts",
            "splip.models.jigsaw",
            "splip.models.clip",
            "splip.models.towers.base",
        ],
    ),
    ("ops", "The fused ops and their definition.", ["splip.ops", "splip.ops.reference"]),
    (
        "evaluation",
        "What is measured, and how.",
        [
            "splip.evaluation",
            "splip.evaluation.metrics",
            "splip.evaluation.protocols",
        ],
    ),
    (
        "train",
        "The loop, and the loss of a batch.",
        [
            "splip.train",
            "splip.train.losses",
            "splip.train.rivals.elastic",
            "splip.train.rivals.icon",
            "splip.train.rivals.consistency",
        ],
    ),
    ("images", "Picture files to square arrays.", ["splip.images"]),
    ("data", "Trees of sketches and photos, and their splits.", ["splip.data", "splip.data.datasets"]),
    ("milvus", "A gallery in a Milvus collection.", ["splip.milvus"]),
    ("cluster", "Galleries on several machines.", ["splip.cluster"]),
    ("serve", "The service.", ["splip.serve", "splip.serve.app", "splip.serve.schemas"]),
    ("client", "A service, asked from Python.", ["splip.client"]),
    ("export", "Encoders for ONNX, OpenVINO and TensorRT.", ["splip.export", "splip.export.command"]),
]  # fmt: skip


@event_priority(100)  # before mkdocstrings looks at its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the pages that are made here."""
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    for entry in sections["Reference"]:
        if "Commands" in entry:
            entry["Commands"] = [
                "reference/commands/index.md",
                *(f"reference/commands/splip-{word}.md" for word in _words()),
            ]
        if "Python" in entry:
            entry["Python"] = ["reference/python/index.md", *(f"reference/python/{name}.md" for name, *_ in _wings())]
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_whole_package()]
    return config


def _whole_package() -> str:
    """A folder with splip in it, splip.export included: of an editable install, that lies elsewhere."""
    import splip.export

    here, export = Path(splip.__path__[0]), Path(splip.export.__path__[0])
    if export.parent == here:
        return str(here.parent)
    whole = Path(LINKS.name, "splip")
    whole.mkdir(exist_ok=True)
    for path in (*here.iterdir(), export):
        link = whole / path.name
        if not link.is_symlink():
            link.symlink_to(path)
    return LINKS.name


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {
        "reference/http.md": http(),
        "reference/environment.md": environment(),
        "changelog.md": changelog(),
        "contributing.md": contributing(),
    }
    pages |= {f"reference/commands/{name}.md": text for name, text in commands().items()}
    pages |= {f"reference/python/{name}.md": text for name, text in python().items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def contributing() -> str:
    """CONTRIBUTING.md with its links to docs/ as seen from there."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")


def escaped(text: str) -> str:
    """Words as Markdown that shows them as they are, but for `code`."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]\\|~])", r"\\\1", html.escape(parts[i], quote=False)).replace("{", "&#123;")
    return "`".join(parts)


# ---- commands ----


def _words() -> list[str]:
    """The first words of all verbs, in order."""
    return list(dict.fromkeys(verb.split()[0] for verb in main.VERBS))


def commands() -> dict[str, str]:
    """A page for each first word of a verb, and one that lists them."""
    verbs = main.VERBS
    pages: dict[str, str] = {}
    for word in _words():
        text = f"# splip {word}\n"
        for verb in (v for v in verbs if v.split()[0] == word):
            text += _command(verb, 2 if verb != word else 0)
        pages[f"splip-{word}"] = text
    rows = [
        f"| [`splip {verb}`](splip-{verb.split()[0]}.md{'' if ' ' not in verb else '#splip-' + verb.replace(' ', '-')}) | {escaped(entry[2])} |"
        for verb, entry in verbs.items()
    ]
    pages["index"] = (
        "# Commands\n\n`splip VERB --help` says the same; for the verbs with most options `--help-all` does, and `--help` shows the common ones. Settings come from defaults, then `--config` files (`splip train`, "
        "`splip serve`), then [variables](../environment.md) (`splip serve`), then flags.\nWith `--json` (`--json -` where it names a "
        "file) stdout gets one JSON object and nothing else; what people read goes to stderr then, as progress always does.\nExit codes: 0 good, 1 failed, 2 wrong usage or input; a user's mistake is one line.\n\n| | |\n|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )
    return pages


def _command(verb: str, level: int) -> str:
    parser = main.parser(verb)
    about, _, rest = parser.description.partition("\n\nexamples:\n")
    examples, _, more = rest.partition("\n\n")
    text = f"\n{'#' * level} splip {verb}\n" if level else ""
    text += f"\n{escaped(about)}\n\n```bash\n" + "\n".join(line.strip() for line in examples.splitlines()) + "\n```\n"
    text += f"\n{escaped(more)}\n" if more else ""
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if "--help" not in a.option_strings]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            text += f"\n{'#' * ((level or 1) + 1)} {group.title.removesuffix(' options').capitalize()}\n"
        for action in actions:
            text += "\n" + _option(action)
    return text


def _option(action: Any) -> str:
    """An entry of a definition list."""
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", action.help or "").split())
    found = re.fullmatch(r"(.*?)\s*\((default: .*|required|repeatable|optional)\)", said)
    said, note = found.groups() if found else (said, "")
    names = ", ".join(
        f"`{name.replace('--k', '-k, --k') if name == '--k' else name}`" for name in action.option_strings
    )
    value = "" if action.nargs == 0 or not action.metavar else _metavar(str(action.metavar))
    names = f"{names} `{value}`".strip() if value else names
    default = note.removeprefix("default: ")
    if note.startswith("default: "):
        note = "" if default in ("", "None", "False") else f"default `{default}`"
    return f"{names}{f' · {note}' if note else ''}\n:   {escaped(said)}\n"


def _metavar(text: str) -> str:
    """What tyro calls a value, as people write it: without the braces and the None."""
    text = re.sub(r"\{None\}\|", "", text).replace("{", "").replace("}", "").replace(",", " | ")
    several = re.fullmatch(r"\[+(.+) \[\1 \.\.\.\]+", text)
    return f"{several[1]} ..." if several else text


# ---- the environment ----


def environment() -> str:
    """A table for each verb that takes variables: each of them, its option, and what it does."""
    from splip import environment

    text = (
        "# Environment\n\nMade from the settings. Defaults give way to `--config` files, those to variables, those to flags. "
        "A list is `a, b`, or `['a', 'b']` where commas are part of it; `true` and `false`, `yes` and `no`, `1` and `0` turn on "
        "and off; `none` is none; an empty variable sets nothing. One that no option has is refused. How to use them: "
        "[Settings of the service](../how-to/configure.md).\n\n"
        "`SPLIP_GALLERY` is the gallery of all verbs that are not told another.\n"
    )
    for verb, prefix in main.VARIABLES.items():
        actions = {
            name: action
            for group in main.parser(verb)._action_groups
            for action in group._group_actions
            for name in action.option_strings
        }
        text += f"\n## splip {verb}\n\n| | option | |\n|---|---|---|\n"
        text += f"| `{prefix}_{environment.FILES}` | `--config` | YAML files with defaults of all options |\n"
        for variable, name in environment.variables(main._named(main.VERBS[verb][0]), prefix).items():
            flag = "--" + name.replace("_", "-")
            said = _option(actions[flag]).partition("\n:   ")[2].strip()
            text += f"| `{variable}` | [`{flag}`](commands/splip-{verb.split()[0]}.md) | {said} |\n"
    return text


# ---- HTTP ----


def _openapi() -> dict[str, Any]:
    """OpenAPI's document of the service with its default settings; no gallery is opened."""
    service = mock.MagicMock(config=ServeConfig(gallery=Path("gallery")), max_body=1)
    inner = app.create(service)
    while not hasattr(inner, "openapi"):
        inner = inner.app
    return inner.openapi()


def _kind(schema: dict[str, Any] | None) -> str:
    """The type of a value, in Markdown."""
    schema = schema or {}
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(_kind(one) for one in schema[word] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items') or (schema.get('prefixItems') or [{}])[0])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    kind = {"binary": "file"}.get(schema.get("format", ""), schema.get("type", "any"))
    lowest = schema.get("minimum", schema.get("exclusiveMinimum"))
    highest = schema.get("maximum")
    if highest is not None and highest < 1e9:
        kind += f", {lowest if lowest is not None else '…'} to {highest}"
    elif lowest is not None and lowest > 0:
        kind += f", at least {lowest}"
    for bound, words in (("maxItems", "items"), ("maxLength", "characters")):
        if bound in schema:
            kind += f", at most {schema[bound]:,} {words}"
    return kind


def _fields(rows: list[tuple[str, dict[str, Any], bool, str]]) -> str:
    """A table of names, types and what they are."""
    lines = ["| | type | default | |", "|---|---|---|---|"]
    for name, schema, required, text in rows:
        default = (
            "required"
            if required
            else (f"`{schema['default']}`" if schema.get("default") not in (None, [], {}) else "")
        )
        lines.append(f"| `{name}` | {_kind(schema)} | {default} | {escaped(' '.join(text.split()))} |")
    return "\n".join(lines) + "\n"


def http() -> str:
    """The service's addresses, grouped by their tags, then the shapes of what is sent."""
    api = _openapi()
    shapes: dict[str, Any] = api["components"]["schemas"]
    text = (
        "# HTTP\n\nMade from the service's own OpenAPI document, which a running service has at `/openapi.json`; `/docs` shows it. "
        "How to start one: [Serve and draw](../tutorials/serve.md).\n\n"
        "What is refused gets a [Problem](#problem): 400 unreadable, 401 and 403 not allowed, 404 not there, 408 too slow, "
        "409 another writer, 413 too large, 415 not a picture, 421 another host, 422 wrong fields, 429 too many, 503 not now, "
        "507 the disk is full. The addresses that OpenAI's clients ask answer as OpenAI does, with [Failed](#failed).\n"
    )
    group = None
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["service"])[0]
            if tag != group:
                group, text = tag, text + f"\n## {tag.capitalize()}\n"
            text += f"\n### {method.upper()} {path}\n\n{escaped(operation.get('description', operation.get('summary', '')))}\n"
            if operation.get("security"):
                text += "\nNeeds the token: `Authorization: Bearer TOKEN`.\n"
            rows = [
                (p["name"], p.get("schema", {}), p.get("required", False), p.get("description", ""))
                for p in operation.get("parameters", [])
            ]
            if rows:
                text += "\n" + _fields(rows)
            bodies = operation.get("requestBody", {}).get("content", {})
            if bodies:
                text += "\nTakes " + _bodies(bodies) + ".\n"
            shape = bodies.get("multipart/form-data", {}).get("schema", {})
            form, needed = shape.get("properties"), shape.get("required", ())
            if form:
                text += "\nFields of a form:\n\n" + _fields(
                    [
                        (n, s, n in needed, s.get("description", s.get("items", {}).get("description", "")))
                        for n, s in form.items()
                    ]
                )
            good = [(code, r) for code, r in operation["responses"].items() if code < "300"]
            for code, response in good:
                content = response.get("content", {})
                kinds = ", ".join(f"`{kind}`" for kind in content)
                refs = [_kind(c["schema"]) for c in content.values() if c.get("schema")]
                answer = " ".join(
                    filter(None, [refs[0] if refs and refs[0] != "any" else "", f"({kinds})" if kinds else ""])
                )
                text += f"\nAnswers {code}{': ' + answer if answer else ''}.\n"
    text += "\n## Shapes\n"
    for name, shape in sorted(shapes.items()):
        if name in ("HTTPValidationError", "ValidationError") or "properties" not in shape:
            continue
        text += f"\n### {name}\n\n{escaped(inspect.cleandoc(shape.get('description', '')))}\n\n"
        required = shape.get("required", ())
        text += _fields([(n, s, n in required, s.get("description", "")) for n, s in shape["properties"].items()])
    return text


def _bodies(bodies: dict[str, Any]) -> str:
    pictures = [f"`{kind}`" for kind in bodies if kind.startswith("image/")]
    said = [
        f"`{kind}`" + (f": {_kind(body['schema'])}" if "$ref" in body.get("schema", {}) else "")
        for kind, body in bodies.items()
        if not kind.startswith("image/")
    ]
    return ", ".join(said) + (f", or the bytes of a picture ({', '.join(pictures)})" if pictures else "")


# ---- Python ----


def _wings() -> list[tuple[str, str, list[types.ModuleType]]]:
    return [(name, about, [importlib.import_module(module) for module in modules]) for name, about, modules in WINGS]


def _public(module: types.ModuleType) -> list[Any]:
    """The documented classes and functions that a package offers, or that a plain module defines, in their order."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    things = [getattr(module, name) for name in names]
    things = [
        thing
        for thing in things
        if (inspect.isclass(thing) or inspect.isroutine(thing))
        and thing.__doc__
        and thing.__module__.startswith(module.__name__ if not hasattr(module, "__path__") else "splip.")
    ]
    return sorted(things, key=_is_settings)


def _is_settings(thing: Any) -> bool:
    """Settings come last and in short: the pages of the commands say what each one is."""
    return thing.__name__.endswith("Config")


def python() -> dict[str, str]:
    """A page for each wing: what it says of itself, then what it offers."""
    pages = {}
    for name, about, modules in _wings():
        text, seen = f"# splip.{name}\n", set()
        for i, module in enumerate(modules):
            own = not i and module.__name__ == f"splip.{name}"
            if not own:
                text += f"\n## {module.__name__} {{ #module-{module.__name__} }}\n"
            text += f"\n{_prose(inspect.cleandoc(module.__doc__)) if module.__doc__ else about}\n"
            for thing in _public(module):
                where = f"{thing.__module__}.{thing.__qualname__}"
                if where not in seen:
                    seen.add(where)
                    text += f"\n::: {where}\n    options:\n      heading_level: {2 if own else 3}\n"
                    text += "      members: false\n" if _is_settings(thing) else ""
        pages[name] = text
    rows = [f"| [`splip.{name}`]({name}.md) | {about} |" for name, about, _ in _wings()]
    pages["index"] = (
        f"# Python\n\n{_prose(inspect.cleandoc(splip.__doc__)) if splip.__doc__ else ''}\n\n"
        "What is written here are the docstrings. Shapes are capital letters: "
        "B batch, L tokens, P prompts, D width, Q queries, N gallery, K results.\n\n| | |\n|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )
    return pages


def _prose(text: str) -> str:
    """A docstring as Markdown."""
    parts = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").split("\n\n")
    return "\n\n".join(part if part.startswith(("* ", "    ")) else re.sub("::$", ":", escaped(part)) for part in parts)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Short code stays on one line; the roles of Sphinx, which our docstrings have in places, are code like the rest."""
    text = re.sub(r"(?<!<pre>)<code>(?=[^<]{1,26}</code>)", '<code class="short">', text)
    if page.file.src_uri.startswith("reference/python/"):
        text = re.sub(r":\w+:(<code[^>]*>)~?", r"\1", text)
    return text
