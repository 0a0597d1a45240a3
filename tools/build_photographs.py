"""A folder of real photographs to try a search on: Tux Paint's stamps (GPL-2.0), on white, without what is drawn.

They belong to the held-back test: nothing is trained or tuned on them. README's first picture is made of them:

    python tools/build_photographs.py --out photographs    # needs apt-get and dpkg
    splip data sample --out sample
    splip index add photographs --gallery photographs.gallery
    splip search --gallery photographs.gallery -k 9 --grid docs/pictures/photographs.png --sketch \
      sample/sketch/fruit/1f34e-1.png sample/sketch/car/1f697-1.png sample/sketch/guitar/1f3b8-1.png \
      sample/sketch/camel/1f992-1.png sample/sketch/fruit/1f34c-1.png
"""

import argparse
from pathlib import Path

from build_heldback import GALLERY
from icon_packages import fetch, stop
from PIL import Image

from splip.errors import UserError

SUBJECTS = ("animals", "clothes", "food", "hobbies", "household", "naturalforces", "plants", "space", "sports", "town",
            "vehicles")  # fmt: skip
DRAWN = ("cartoon", "flags", "roadsigns")  # folders of these


def build(work: Path, out: Path) -> int:
    """Write the photographs, JPEG, in folders by subject; returns how many."""
    stamps = fetch(work, "tuxpaint", GALLERY["tuxpaint"]) / "usr/share/tuxpaint/stamps"
    count = 0
    for path in sorted(stamps.rglob("*.png")):
        *folders, name = path.relative_to(stamps).parts
        if folders[0] not in SUBJECTS or set(folders) & set(DRAWN) or "cartoon" in name or "_mirror" in name:
            continue
        with Image.open(path) as image:
            stamp = image.convert("RGBA")
        photo = Image.new("RGB", stamp.size, "white")
        photo.paste(stamp, mask=stamp.getchannel("A"))
        folder = out / "-".join(folders)
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{path.stem}.jpg", quality=92)
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("photographs"), help="folder for the photographs")
    parser.add_argument("--work", type=Path, default=Path("build/art"), help="where packages are kept")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"{args.out}: {build(args.work, args.out)} photographs")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(error)
