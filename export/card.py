"""The model card of an export: README.md, for whoever finds the folder."""

from pathlib import Path

from splip import disk
from splip.encoders import tokenizer
from splip.encoders.manifest import FILE, INPUT, MODALITY, OUTPUT, TOKENS, Manifest


def write(folder: Path, about: Manifest, source: str) -> None:
    """Write ``README.md`` from what the manifest says."""
    disk.write_text(folder / "README.md", "\n".join(_lines(about, source)) + "\n")


def _sizes(about: Manifest) -> list[str]:
    shorter = ", ".join(map(str, about.dimensions[:-1]))
    if not shorter:
        return []
    return [
        f"  Trained to be cut, too: the first {shorter} components, divided by their length, are vectors of their own",
        "  (`Encoder.load(..., dimensions=...)`). Sizes cannot be mixed.",
    ]


FITS = {
    "pad": "scaled to fit and padded with white",
    "pad-black": "scaled to fit and padded with black",
    "stretch": "stretched to a square",
    "crop": "scaled, and its centre cut out",
}


def _lines(about: Manifest, source: str) -> list[str]:
    model, S, D = about.model, about.image_size, about.embed_dim
    backbone = model["backbone"]
    weights = backbone["pretrained"] or f"random weights of seed {backbone['seed']}"
    low, best, high = about.batch
    trained = f"trained on {model['classes']} classes" if model["classes"] else "not trained"
    crop = "; a sketch is first cropped to its ink plus a small border" if about.crop_sketches else ""
    lines = [
        f"# {about.name}",
        "",
        "Two encoders for finding photos from a drawing: `sketch.*` for drawings, `photo.*` for photos. Both give",
        "vectors of unit length; the dot product of a sketch and a photo says how well they match.",
        "",
        "| | |",
        "|---|---|",
        f"| made of | `{source}`, identity `{about.identity}` |",
        f"| method | {model['method']}, {trained} |",
        f"| backbone | {backbone['name']} ({weights}), {model['layers']} layers of width {model['width']} |",
        f"| prompt tokens, folded in | {model['prompts'][0]} for sketches, {model['prompts'][1]} for photos |",
        f"| precision | {about.precision}; pixels, residuals, LayerNorms and the last projection fp32 |",
        f"| images per call | {low} to {high}, tuned for {best} |",
        f"| ONNX opset | {about.opset} |",
        f"| written by | {', '.join(f'{k} {v}' for k, v in about.versions.items())} |",
        "",
        "## Input and output",
        "",
        f"A picture is upright and on white, {FITS[about.fit]}, {S} x {S} pixels, bicubic{crop}.",
        "",
    ]
    if about.fused:
        lines += [f"* `{INPUT}`: uint8 `[batch, {S}, {S}, 3]`, RGB. Normalisation is in the graph."]
    else:
        mean, std = (", ".join(f"{v:.8g}" for v in values) for values in (about.mean, about.std))
        lines += [f"* `{INPUT}`: float32 `[batch, 3, {S}, {S}]`, RGB, `(pixel / 255 - mean) / std`"]
        lines += [f"  with mean {mean} and std {std}."]
    lines += [
        f"* `{OUTPUT}`: float32 `[batch, {D}]`, unit length.",
        *_sizes(about),
        "",
        "```python",
        "from pathlib import Path",
        "from splip import Encoder, images  # needs numpy, Pillow and the engine; not torch",
        "",
        'encoder = Encoder.load("this folder")',
        'pixels = encoder.prepare(images.read(Path("drawing.png")), "sketch")',
        'vector = encoder.encode(pixels[None], "sketch")[0]',
        "```",
        "",
        "## How faithful it is",
        "",
        f"{about.verification['sketches']} sketches and {about.verification['photos']} photos of"
        f" `{about.verification['pictures']}` through these files and through the",
        "checkpoint in float32 PyTorch.",
        "",
        "| files | precision | status | cosine min | cosine mean | largest difference | same first photo | same ten |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += _fidelity(about)
    if about.text is not None:
        lines += [
            "",
            f"`{about.text.files[0]}` is the text tower, float32: `{TOKENS}` int64 `[batch, words]` of at most"
            f" {about.text.length}, ids of a text",
            f"as `{tokenizer.FILE}` gives them, then {about.text.end}, then zeros; `{MODALITY}` int64 `[batch]`: 1, prompted as"
            " photos are. Over",
            f"{about.text.texts} texts the largest difference is {about.text.max_difference:.1e}.",
        ]
    for kind, row in about.rejected.items():
        lines += ["", f"Rejected: {kind}: {row['reason']} ({', '.join(row['files'])})."]
    lines += [
        "",
        f"`{FILE}` holds the same for programs, with a sha256 of every file. The weights stand under the licences of",
        "the backbone and of the pictures that the checkpoint was trained on.",
    ]
    return lines


def _fidelity(about: Manifest) -> list[str]:
    """A row of the table for each precision of each kind of files."""
    rows = []
    for kind, built in about.engines.items():
        for precision in built.precisions:
            f = built.fidelity.get(precision)
            figures = (
                f"{f['min_cosine']:.6f} | {f['mean_cosine']:.6f} | {f['max_difference']:.1e} | "
                f"{f['top1']:.1%} | {f['top10']:.1%}"
                if f
                else "| | | |"
            )
            rows.append(f"| {kind} | {precision} | {built.status} | {figures} |")
    return rows
