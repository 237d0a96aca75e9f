"""Small files that come with the package."""

from pathlib import Path

DEMO_EXCHANGES = Path(__file__).parent / "demo_exchanges.jsonl"
"""A dozen mild exchanges, written for ``protector demo``; model names in it are made up."""
