"""Small pictures for tests."""

from PIL import Image, ImageDraw


def draw(path, kind, colour, seed, size=(48, 40)):
    """A small picture: one of six shapes, shifted by the seed."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    x, y = 4 + seed % 5, 3 + seed % 4
    box = (x, y, x + 26, y + 26)
    if kind == 0:
        pen.ellipse(box, outline=colour, width=3)
    elif kind == 1:
        pen.rectangle(box, outline=colour, width=3)
    elif kind == 2:
        pen.line([(x, y), (x + 26, y + 26)], colour, 3)
    elif kind == 3:
        pen.line([(x, y + 13), (x + 26, y + 13)], colour, 5)
    elif kind == 4:
        pen.polygon([(x + 13, y), (x, y + 26), (x + 26, y + 26)], outline=colour)
    else:
        pen.line([(x + 13, y), (x + 13, y + 26)], colour, 5)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pair(root, lacking=()):
    """instances.csv: photo 0 shows what sketches 0 and 1 show, photo 1 what sketch 2 shows."""
    lines = ["path,instance"]
    for sketch in sorted((root / "sketch").rglob("*.png")):
        if sketch.relative_to(root).as_posix() not in lacking:
            lines.append(f"{sketch.relative_to(root).as_posix()},{sketch.parent.name}-{int(sketch.stem) // 2}")
    for photo in sorted((root / "photo").rglob("*.jpg")):
        lines.append(f"{photo.relative_to(root).as_posix()},{photo.parent.name}-{photo.stem}")
    (root / "instances.csv").write_text("\n".join(lines) + "\n")
