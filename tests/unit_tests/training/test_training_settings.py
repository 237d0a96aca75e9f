"""Settings from YAML: unknown names are refused, what is written is what is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.models.base_weights import SMOLLM2
from protector_guardrails.training.detoxifier import DetoxifierTrainingConfig
from protector_guardrails.training.lora_detector import LoraDetectorConfig
from protector_guardrails.training.settings import checked, read_settings

EXAMPLES = Path(__file__).parents[3] / "examples" / "training"


def test_the_paper_is_the_default_of_a_detector() -> None:
    config = LoraDetectorConfig(train=("a",), base="b")
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (32, 32, 0.1)
    assert config.lora_targets == ("q_proj", "v_proj")
    assert (config.learning_rate, config.schedule, config.warmup_ratio) == (2e-5, "linear", 0)
    assert (config.epochs, config.batch_size, config.max_tokens, config.bf16) == (4, 8, 512, True)
    assert (config.objective, config.weight_decay) == ("bce", 0)


def test_the_papers_detoxifier_is_an_example_file() -> None:
    settings = read_settings(EXAMPLES / "detoxifier-paper.yaml")
    base = settings.pop("base")
    config = checked(settings | {"train": "a.jsonl"}, DetoxifierTrainingConfig, where="x")
    assert "7b" in base.lower()
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (128, 32, 0.1)
    assert config.lora_targets == ("q_proj", "v_proj")
    assert (config.learning_rate, config.schedule, config.epochs, config.batch_size) == (2e-5, "linear", 4, 8)
    assert config.max_prompt_tokens + config.max_target_tokens == 512
    assert (config.refusals, config.distinct_targets, config.judged_targets) == (1.0, False, False)


def test_every_example_file_holds_settings_that_there_are() -> None:
    detector = read_settings(EXAMPLES / "detector-paper.yaml")
    stated = checked(detector, LoraDetectorConfig, where="x")
    assert stated.model_dump(exclude={"output"}) == LoraDetectorConfig(
        train=stated.train, base=stated.base, format=stated.format
    ).model_dump(exclude={"output"}), "the example says something else than the paper"
    for name in ("detoxifier-embedded.yaml", "detoxifier-embedded-2.yaml"):
        settings = read_settings(EXAMPLES / name)
        assert settings.pop("base") == SMOLLM2.repository
        assert checked(settings, DetoxifierTrainingConfig, where=name).lora_last_layers == 15
    for name in ("accelerate-fsdp.yaml", "accelerate-deepspeed.yaml"):
        assert load_config_from_file(str(EXAMPLES / name)).distributed_type in ("FSDP", "DEEPSPEED")


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "train: a.jsonl\nbase: b\nlearning_rate: 2e-5  # YAML alone takes this for a text\npatience: null\n"
    )
    config = checked(read_settings(path), LoraDetectorConfig, where=str(path))
    assert config.train == (Path("a.jsonl"),)
    assert config.learning_rate == 2e-5 and config.patience is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("train: a\nbase: b\nlora_rnak: 3\n", "no setting 'lora_rnak'"),
        ("train: a\nbase: b\nlora_rank: 0\n", "lora_rank: "),
        ("train: a\nbase: b\nobjective: mse\n", "objective: "),
        ("train: []\nbase: b\n", "train: "),
        ("base: b\n", "train: Field required"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"run\.yaml: ") as raised:
        checked(read_settings(path), LoraDetectorConfig, where=str(path))
    assert complaint in str(raised.value)


@pytest.mark.parametrize("text", ["- a\n", "text", "", "a: [1\nb: 2\n", "1: 2\n", "a: !!python/object:os.system x\n"])
def test_what_is_no_mapping_of_names_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"run\.yaml"):
        read_settings(path)
