"""Makes ``verify_samples`` importable for the tests of this folder, whatever import mode pytest runs in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
