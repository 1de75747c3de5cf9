"""Makes judged.py importable for the tests beside it, whichever directory they run from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
