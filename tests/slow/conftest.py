"""What takes minutes: `make test-slow`. Counts go to the file that FORGETLESS_RELIABILITY names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
