"""`python -m polyfield`: the command line."""

import sys

from .scenes.cli import main

sys.exit(main())
