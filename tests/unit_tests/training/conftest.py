"""Bases that several tests learn on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from small_causal import write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a tokenizer of bytes."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny-llama")
