"""``python -m splip`` is the ``splip`` command."""

import sys

from splip.cli import main

sys.exit(main())
