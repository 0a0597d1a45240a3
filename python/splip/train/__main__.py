"""``python -m splip.train``: as ``splip train``."""

import sys

from splip.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
