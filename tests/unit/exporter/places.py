"""Where the tests of this room find what they read."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
ANVIL = REPOSITORY / "deploy" / "models" / "anvil" / "weights"
