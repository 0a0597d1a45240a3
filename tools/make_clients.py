"""Make clients of the service in Python and TypeScript from its OpenAPI document.

    splip serve --gallery my-gallery &
    python tools/make_clients.py http://127.0.0.1:8000/openapi.json --python my_client
    python tools/make_clients.py openapi.json --typescript my-client/api.d.ts --node-modules node_modules

Python needs openapi-python-client of PyPI, TypeScript openapi-typescript of npm, with node.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# Pictures are bytes: openapi-python-client knows that of this type alone.
CONFIG = """\
content_type_overrides:
  image/*: application/octet-stream
  image/jpeg: application/octet-stream
post_hooks: []
"""


def document(where: str, folder: Path) -> Path:
    """The OpenAPI document as a file: ``where`` is one, or the address of one."""
    if not where.startswith(("http://", "https://")):
        return Path(where).resolve()
    file = folder / "openapi.json"
    with urllib.request.urlopen(where, timeout=30) as answer:
        file.write_bytes(answer.read())
    return file


def python(file: Path, out: Path) -> str:
    """A package in the folder ``out``; returns what the generator had to say, which is nothing when all went well."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(file), "--meta", "none"]
        command += ["--output-path", str(out), "--overwrite", "--config", str(config), "--fail-on-warning"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"openapi-python-client failed:\n{done.stdout}{done.stderr}")
    return "\n".join(line for line in done.stdout.splitlines() if line and not line.startswith("Generating"))


def typescript(file: Path, out: Path, modules: Path) -> None:
    """The types in the file ``out``; ``modules``: the folder node_modules that holds openapi-typescript."""
    node, program = shutil.which("node"), modules / "openapi-typescript" / "bin" / "cli.js"
    if node is None or not program.is_file():
        raise SystemExit(f"{program}: needs node, and npm install openapi-typescript")
    # A field with a default may be left out of a request.
    command = [node, str(program), str(file), "--output", str(out), "--default-non-nullable", "false"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        raise SystemExit(f"openapi-typescript failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", help="openapi.json: a file or its address")
    parser.add_argument("--python", type=Path, metavar="FOLDER", help="package to make")
    parser.add_argument("--typescript", type=Path, metavar="FILE.d.ts", help="file of types to make")
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"), metavar="FOLDER")
    args = parser.parse_args()
    if args.python is None and args.typescript is None:
        parser.error("nothing to make: --python, --typescript or both")
    with tempfile.TemporaryDirectory() as folder:
        file = document(args.document, Path(folder))
        if args.python is not None:
            python(file, args.python)
        if args.typescript is not None:
            typescript(file, args.typescript, args.node_modules)


if __name__ == "__main__":
    main()
