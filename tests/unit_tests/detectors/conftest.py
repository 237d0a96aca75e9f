"""The tiny checkpoints, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import bert_classifier, causal_llama, detector_adapter, llama_classifier


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that several tests read: ``base``, ``adapter``, ``llama`` (one logit, no padding token), ``bert``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    causal_llama(folder / "base")
    detector_adapter(folder / "adapter", folder / "base")
    llama_classifier(folder / "llama")
    bert_classifier(folder / "bert")
    return folder


@pytest.fixture
def copied(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to be spoilt."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(checkpoints / name, tmp_path / name))

    return copy
