"""``python -m splip`` is the ``splip`` command."""

import sys

from splip.cli.main import main

sys.exit(main())
