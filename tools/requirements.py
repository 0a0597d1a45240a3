"""Print what an installation needs, of splip's own list, without the packages that are named: for small images.

    pip install --no-deps splip-*.whl
    pip install $(python tools/requirements.py --extras serve text --without torch open_clip_torch timm safetensors)

Serving and indexing with an export works without these four; they are for checkpoints.
"""

import argparse
import re
from pathlib import Path

import tomllib

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extras: list[str], without: list[str]) -> list[str]:
    """Requirements of splip and of its extras, those of extras that name extras included.

    Raises:
        SystemExit: an extra or a package that is not in the list: a word that does nothing is a mistake.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted, todo = list(project["dependencies"]), list(extras)
    for extra in todo:
        if extra not in project["optional-dependencies"]:
            raise SystemExit(f"requirements.py: no extra {extra}")
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(r"splip\[(.+)\]", line)
            if inner:
                todo += [name for name in inner[1].split(",") if name not in todo]
            else:
                wanted.append(line)
    for name in without:
        if not any(package(line) == package(name) for line in wanted):
            raise SystemExit(f"requirements.py: {name} is not among the requirements")
    left = {package(name) for name in without}
    return sorted({line for line in wanted if package(line) not in left})


def package(requirement: str) -> str:
    """The name in a requirement, as registries compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[])
    parser.add_argument("--without", nargs="*", default=[])
    args = parser.parse_args()
    print("\n".join(requirements(args.extras, args.without)))


if __name__ == "__main__":
    main()
