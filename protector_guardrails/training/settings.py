"""Settings of a training run: what runs have in common, and reading them from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.training.adapters import Form

_Settings = TypeVar("_Settings", bound=BaseModel)

Files = Annotated[tuple[Path, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value)]
"""One file, or several."""


class LoraSettings(BaseModel):
    """What decides a training run with LoRA, whatever is learnt; stored beside its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Files = Field(min_length=1)
    """Files to learn from."""
    output: Path
    """Folder of the run."""
    format: Form | None = None
    """Form of the files; None: told from the fields of each file's first record."""
    columns: dict[str, str] = {}
    """Names of the fields of files of pairs: ``question``, ``accepted``, ``rejected``."""
    lora_rank: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field(min_length=1)
    lora_last_layers: int | None = Field(None, ge=1)
    """Adapt this many layers, the last ones; None: all. The backward pass then ends early, which saves time."""
    epochs: int = Field(ge=1)
    batch_size: int = Field(8, ge=1)
    """Pairs, or single answers, of one step on each device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Batches of one update; with half the batch size and twice the steps the same is learnt in less memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: slower, in less memory."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    seed: int = 13
    held_out: float = Field(ge=0, lt=1)
    """Share of what was read that is kept for measuring."""
    save_steps: int = Field(100, ge=1)
    """Updates between two checkpoints; what is held out is measured at each."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many checkpoints in a row that were no better; None: train to the end."""
    limit: int | None = Field(None, ge=1)
    """Use only so many records of every file: for trying the recipe out."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """In what the base's frozen weights are held; what is learnt is always float32."""
    bf16: bool | None = None
    """bfloat16 autocast; None: where the hardware is faster with it."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; None: PyTorch's own choice."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigurationError: If it cannot be read, or is no mapping of names to values.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigurationError(f"{path}{line}: not valid YAML") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigurationError(f"{path}: expected settings as name: value")
    return content


def checked(settings: Mapping[str, Any], kind: type[_Settings], *, where: str) -> _Settings:
    """Settings as the configuration of a recipe.

    Args:
        settings: Names to values.
        kind: The recipe's configuration.
        where: Where they come from, for errors.

    Raises:
        ConfigurationError: If there is no such setting, or a value cannot be; names it.
    """
    if unknown := sorted(set(settings) - set(kind.model_fields)):
        raise ConfigurationError(
            f"{where}: there is no setting {unknown[0]!r} in this recipe; there are: {', '.join(kind.model_fields)}"
        )
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
