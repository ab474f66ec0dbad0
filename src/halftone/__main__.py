"""``python -m halftone`` is the ``halftone`` command."""

import sys

from halftone.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
