"""Finding a checkpoint, on disk or on the hub, and checking its files before any of them is used.

A repository of the hub is fetched into the hub's cache first and read from there, so that
both ways go through the same checks: safetensors only, all of them complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from protector_guardrails.errors import WeightsError
from protector_guardrails.models.base_weights import sha256_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_SMALL = (
    "config.json",
    ADAPTER_CONFIG,
    _INDEX,
    *_TOKENIZER,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_WEIGHTS = (ADAPTER_WEIGHTS, "model.safetensors", "model-*-of-*.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name to shape."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files of one model or adapter.

    Attributes:
        name: Repository of the hub, or name of the folder.
        folder: Where the files are.
        commit: Commit of the hub; None for a folder of the user.
        weights: Weight files, checked; empty until :meth:`with_weights`.
        shapes: Shapes of the tensors in them.
    """

    name: str
    folder: Path
    commit: str | None = None
    weights: tuple[Path, ...] = ()
    shapes: Shapes = field(default_factory=dict)

    @property
    def adapter_config(self) -> dict[str, Any] | None:
        """What ``adapter_config.json`` says; None if this is no adapter."""
        path = self.folder / ADAPTER_CONFIG
        return _json(path) if path.exists() else None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies with it."""
        return any((self.folder / name).exists() for name in _TOKENIZER)

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` says.

        Raises:
            WeightsError: If there is none.
        """
        path = self.folder / "config.json"
        if not path.exists():
            raise WeightsError(f"{self.name} is no model: there is no config.json. {_holdings(self.folder)}".rstrip())
        return _json(path)

    def with_weights(self) -> Checkpoint:
        """The same with its weights fetched, and every file found to be complete.

        Raises:
            WeightsError: If there are none in safetensors, one is missing, or one is not whole.
        """
        if self.commit is not None:
            _fetch(self.name, self.commit, _WEIGHTS)
        paths = self._weight_files()
        shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            shapes |= tensor_shapes(path)
        return replace(self, weights=tuple(paths), shapes=shapes)

    def _weight_files(self) -> list[Path]:
        if self.adapter_config is not None:
            names = [ADAPTER_WEIGHTS]
        elif (self.folder / _INDEX).exists() and not (self.folder / "model.safetensors").exists():
            shards = _json(self.folder / _INDEX).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise WeightsError(f"{self.name}: {_INDEX} names no weights")
            names = sorted({str(shard) for shard in shards.values()})
        else:
            names = ["model.safetensors"]
        # The index comes with the weights: it must not lead out of their folder.
        missing = [name for name in names if Path(name).name != name or not (self.folder / name).is_file()]
        if missing and len(names) > 1:
            raise WeightsError(f"{self.name} is incomplete: {', '.join(missing)} missing. Fetch it again")
        if missing:
            raise WeightsError(f"{self.name} has no {names[0]}. {_holdings(self.folder) or self._elsewhere()}".rstrip())
        return [self.folder / name for name in names]

    def _elsewhere(self) -> str:
        if self.commit is None:
            return ""
        return (
            "Weights are read from safetensors only, never from pickles (.bin, .pt) or GGUF. If the repository has no "
            "others, convert them (see docs/own-detector.md), or name a revision that has them with revision=..."
        )

    def sha256(self) -> dict[str, str]:
        """File name to sha256 of everything that bears on a score: weights, configuration, tokenizer."""
        read = [self.folder / name for name in _SMALL if (self.folder / name).is_file()]
        return {path.name: sha256_of(path) for path in sorted([*read, *self.weights])}


def find_checkpoint(model: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Find a folder, or fetch the small files of a repository of the hub.

    Raises:
        WeightsError: If there is none, the hub cannot be reached, or it is in a form that is not read.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        raise WeightsError(
            f"{path} is a GGUF file: such files hold language models without a classification head, so there is "
            "nothing to judge with. Use a sequence classifier or an adapter in safetensors"
        )
    if path.is_dir():
        return Checkpoint(path.resolve().name, path)
    text = os.fspath(model)
    if path.exists():
        raise WeightsError(f"{path} is a file: pass the folder that holds config.json or {ADAPTER_CONFIG}")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or "\\" in text:
        raise WeightsError(f"there is no folder {text}")
    folder = _fetch(text, revision, _SMALL)
    return Checkpoint(text, folder, commit=folder.name)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header.

    Raises:
        WeightsError: If the file is not safetensors, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        pointer = "; it is a pointer of Git LFS, so run: git lfs pull" if _is_pointer(path) else ""
        raise WeightsError(
            f"{path.name} in {path.parent} is damaged or half downloaded{pointer}. Fetch it again ({error})"
        ) from error


def digest(hashes: Mapping[str, str]) -> str:
    """One sha256 of all files, for a name."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def _fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Folder of the hub's cache with these files of a repository."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = repository if revision is None else f"{repository} at revision {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), etag_timeout=10))
    except HFValidationError as error:
        raise WeightsError(f"{repository!r} is neither a folder nor the name of a repository on the hub") from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} is gated: accept its terms on its page on the hub and log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{repository!r} is neither a folder nor a repository on the hub that you may read"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.is_offline_mode():
            raise WeightsError(
                f"{where} is not in the hub's cache, and HF_HUB_OFFLINE is set: fetch it where the hub can be reached, "
                "or pass a folder"
            ) from error
        raise WeightsError(_unreachable(where)) from error
    except Exception as error:  # the hub's client, its transport and the disk have many
        raise WeightsError(f"{_unreachable(where)} ({type(error).__name__}: {first_line(error)})") from error


def _unreachable(where: str) -> str:
    return (
        f"{where} is neither a folder nor in the hub's cache, and the hub cannot be reached: check the network, or "
        "pass a folder"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def _holdings(folder: Path) -> str:
    """What lies there instead, in a sentence."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(_PICKLES) and "training_args" not in name]
    if pickles:
        return (
            f"There is {pickles[0]}: a pickle, which can run any code when it is read and is therefore not read. "
            "Convert it to safetensors (see docs/own-detector.md)"
        )
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"There is {gguf[0]}: GGUF files hold language models without a classification head"
    return ""


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or half downloaded. Fetch it again ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no settings")
    return content
