"""Where tests find the repository, and the real data sets where these are present."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA_SETS = ROOT.parent / "shared" / "data"  # not part of the repository: tests that need one skip without it
