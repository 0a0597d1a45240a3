"""README.md of what ``splip push-to-hub`` sends: what it is, of what it was made, how to use it, under what licence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import splip
from splip.encoders.manifest import Manifest
from splip.errors import shown
from splip.models.presets import PRESETS

SHOWN = 40  # classes, before the rest is a number
HUB_NAMES = {"MIT": "mit", "Apache-2.0": "apache-2.0"}  # licences as the hub calls them


def of_checkpoint(state: Mapping[str, Any], name: str, results: Mapping[str, Any], licence: str | None) -> str:
    """Of a checkpoint.

    Args:
        state: from :func:`splip.models.checkpoint.read_checkpoint`.
        name: OWNER/NAME of the repository.
        results: what ``splip eval`` wrote, or nothing.
        licence: as the hub names it; None: that of the backbone's weights, if it is known.
    """
    backbone, data, method = state["backbone"], state["data"], str(state["config"].get("method"))
    lines = [
        "Finds photos from a drawing, a photo or words: all three become vectors of one space.",
        "",
        *_table(
            {
                "method": method,
                "backbone": _backbone(backbone),
                "trained on": f"{data.get('dataset', 'a tree')}, {len(data['seen'])} classes",
                "chosen by": f"{len(data['validation'])} validation classes",
                "never seen": f"{len(data['unseen'])} classes",
                "steps": state.get("step"),
                "written by": f"splip {splip.__version__}",
            }
        ),
        "",
        f"Classes that it was trained on: {_some(data['seen'])}.",
        "",
        "## How well",
        "",
        *_metrics(state, results),
        "",
        *_usage(name),
    ]
    return _card(name, lines, licence or _known(backbone), ["sketch-based-image-retrieval", method], "model")


def of_export(about: Manifest, name: str, readme: Path, licence: str | None) -> str:
    """Of an export: its own card, and how to load it from the hub."""
    own = readme.read_text(encoding="utf-8").splitlines()[1:] if readme.is_file() else []
    lines = [*_usage(name), "", *own]
    return _card(name, lines, licence or _known(about.model["backbone"]), ["onnx", "openvino"], "model")


def of_gallery(facts: Mapping[str, Any], count: int, labels: int, name: str, licence: str | None) -> str:
    """Of a gallery.

    Args:
        facts: of its database.
        count: its pictures.
        labels: how many labels they have.
        name: OWNER/NAME of the repository.
        licence: as the hub names it.
    """
    lines = [
        "Vectors of pictures, to be searched with a drawing, a photo or words. The pictures themselves are not in it.",
        "",
        *_table(
            {
                "pictures": f"{count:,}",
                "labels": labels,
                "vectors": f"{facts['dim']} numbers, float32, unit length",
                "model": facts["model"],
                "identity of the model": facts["identity"],
                "made": facts.get("created"),
                "written by": f"splip {splip.__version__}",
            }
        ),
        "",
        "## To search it",
        "",
        "```sh",
        "pip install 'splip[hub]'",
        f"splip pull-from-hub {name} --out gallery",
        "splip search --gallery gallery --sketch my.png",
        "```",
    ]
    return _card(name, lines, licence or "other", ["sketch-based-image-retrieval"], "dataset")


def _card(name: str, lines: Sequence[str], licence: str, tags: Sequence[str], kind: str) -> str:
    head: dict[str, Any] = {"license": licence, "tags": ["splip", *tags]}
    if kind == "model":
        head |= {"library_name": "splip", "pipeline_tag": "image-feature-extraction"}
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    body = "\n".join(line if line.startswith(("|", "#", "`")) else shown(line) for line in lines)
    return f"---\n{front}---\n\n# {name.partition('/')[2]}\n\n{body}\n"


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = {key: shown(value).replace("|", "\\|") for key, value in rows.items() if value is not None}
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells.items())]


def _backbone(identity: Mapping[str, Any]) -> str:
    source = identity.get("pretrained")
    if source in (None, "random"):
        source = f"random weights of seed {identity.get('seed')}"
    elif "/" in str(source):
        source = Path(str(source)).name  # a path of whoever trained it says nothing
    commit = f", commit {identity['revision']}" if identity.get("revision") else ""
    return f"{Path(str(identity['name'])).name} ({source}{commit}), sha256 {identity['sha256']}"


def _known(identity: Mapping[str, Any]) -> str:
    """The licence of a backbone's weights, as the hub names it."""
    source = identity.get("pretrained")
    name = f"open_clip:{identity['name']}" + ("" if source == "package" else f"/{source}")
    found = next((preset.licence for preset in PRESETS.values() if preset.model == name), "")
    return HUB_NAMES.get(found, "other")


def _metrics(state: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    lines = []
    quality = state.get("validation")
    if isinstance(quality, float) and state["data"]["validation"]:
        fine = state["config"].get("setting") == "fine-grained"
        lines.append(f"{'Acc@1' if fine else 'mAP@all'} on the validation classes: {100 * quality:.1f} %.")
    table = results.get("query_mean", {})
    if table:
        columns = list(next(iter(table.values())))
        lines += [
            "",
            f"{results.get('protocol')}, {results.get('queries')} sketches, {results.get('gallery')} photos of classes"
            " that it never saw, percent:",
            "",
            "| | " + " | ".join(columns) + " |",
            "|---|" + "---|" * len(columns),
        ]
        for row, values in table.items():
            lines.append(f"| {shown(row)} | " + " | ".join(f"{100 * float(values[c]):.1f}" for c in columns) + " |")
    return lines or ["Not measured."]


def _usage(name: str) -> list[str]:
    return [
        "## To use it",
        "",
        "```sh",
        "pip install 'splip[hub]'",
        f"splip index add my-photos --gallery gallery --model hf-hub:{name}",
        "splip search --gallery gallery --sketch my.png",
        "```",
    ]


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more if words else "none"
