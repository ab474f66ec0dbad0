"""The studies are no installed package: they are found from the repository's root, whatever directory pytest was started in."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
