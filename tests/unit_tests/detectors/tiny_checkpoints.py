"""Checkpoints small enough for a test, in the forms in which guard models are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

TEXTS = [
    "The river walks slowly over the green stones.",
    "A cat sings in the garden, and the lamp is blue!",
    "Question: Where is the bridge?\n\nAnswer: It is over the river, next to the old mill.",
    "def add(a, b):\n    return a + b  # 42",
    "Naïve café; 北京, ελληνικά, and a 🐈.",
]
VOCABULARY = 400
POSITIONS = 128


def tokenizer(folder: Path, *, kind: str = "llama", padding_side: str = "right", **special: str) -> None:
    """A real tokenizer, trained on a few lines: BPE with byte fallback ("llama"), the same that ends every text
    ("llama-eos"), or WordPiece ("bert").
    """
    if kind == "bert":
        built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        built.normalizer = normalizers.BertNormalizer(lowercase=True)
        built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer: Any = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=names, show_progress=False)
        built.train_from_iterator(TEXTS, trainer)
        built.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        built = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        names = ["<unk>", "<s>", "</s>"]
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=names, show_progress=False, max_token_length=6
        )
        built.train_from_iterator(TEXTS, trainer)
        model = json.loads(built.to_str())["model"]
        vocabulary = dict.fromkeys([*names, *alphabet, *model["vocab"]])
        indexed = {token: index for index, token in enumerate(vocabulary)}
        rebuilt = Tokenizer(
            models.BPE(
                vocab=indexed,
                merges=[tuple(m) for m in model["merges"]],
                unk_token="<unk>",
                byte_fallback=True,
                fuse_unk=True,
            )
        )
        rebuilt.normalizer = built.normalizer
        rebuilt.add_special_tokens([AddedToken(name, special=True) for name in names])
        end = " </s>" if kind == "llama-eos" else ""
        rebuilt.post_processor = processors.TemplateProcessing(
            single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        built = rebuilt
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=built, padding_side=padding_side, model_max_length=POSITIONS, **(named | special)
    ).save_pretrained(folder)


def llama_config(*, width: int = 32, **options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY + 300,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        **options,
    )


def _lively(model: Any) -> Any:
    """Weights large enough that different texts get clearly different scores."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2:
                value.normal_(0.0, 0.5 if "embed" in name else 0.25)
            if "score" in name or "classifier" in name or "out_proj.weight" in name:
                value.normal_(0.0, 0.35)
    return model


def causal_llama(folder: Path, *, width: int = 32, **tokens: Any) -> Path:
    """A language model like OpenLLaMA: no head, no padding token."""
    torch.manual_seed(1)
    _lively(LlamaForCausalLM(llama_config(width=width))).save_pretrained(folder)
    tokenizer(folder, **tokens)
    return folder


def llama_classifier(folder: Path, *, labels: int = 1, config: dict[str, Any] | None = None, **tokens: Any) -> Path:
    torch.manual_seed(2)
    made = llama_config(num_labels=labels, **(config or {}))
    _lively(LlamaForSequenceClassification(made)).save_pretrained(folder)
    tokenizer(folder, **tokens)
    return folder


def bert_classifier(folder: Path, *, labels: int = 1, **config: Any) -> Path:
    torch.manual_seed(3)
    made = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        num_labels=labels,
        **config,
    )
    _lively(BertForSequenceClassification(made)).save_pretrained(folder)
    tokenizer(folder, kind="bert")
    return folder


def gpt2_classifier(folder: Path) -> Path:
    """Absolute positions, one token for padding and for the end, as GPT-2 has it."""
    torch.manual_seed(4)
    made = GPT2Config(
        vocab_size=VOCABULARY + 300, n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, num_labels=1, pad_token_id=2
    )
    _lively(GPT2ForSequenceClassification(made)).save_pretrained(folder)
    tokenizer(folder, kind="llama-eos", pad_token="</s>", padding_side="left")
    return folder


def roberta_classifier(folder: Path) -> Path:
    """Positions counted from the padding token's id; a head of two layers."""
    torch.manual_seed(5)
    made = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS + 2,
        pad_token_id=0,
        num_labels=1,
    )
    _lively(RobertaForSequenceClassification(made)).save_pretrained(folder)
    tokenizer(folder, kind="bert")
    return folder


def detector_adapter(folder: Path, base: Path, *, labels: int = 1, old: bool = True) -> Path:
    """Like the paper's: r 32 on q and v, SEQ_CLS, with its head; ``old``: settings as peft 0.4 wrote them."""
    torch.manual_seed(6)
    whole = AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=labels)
    settings = LoraConfig(
        r=32, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"
    )
    adapted = _lively(get_peft_model(whole, settings))
    adapted.save_pretrained(str(folder))
    if old:
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {
                    "base_model_name_or_path": "somebody/llama-of-width-32",
                    "bias": "none",
                    "fan_in_fan_out": False,
                    "inference_mode": True,
                    "init_lora_weights": True,
                    "layers_pattern": None,
                    "layers_to_transform": None,
                    "lora_alpha": 32,
                    "lora_dropout": 0.1,
                    "modules_to_save": None,
                    "peft_type": "LORA",
                    "r": 32,
                    "revision": None,
                    "target_modules": ["q_proj", "v_proj"],
                    "task_type": "SEQ_CLS",
                }
            )
        )
    return folder


def writer_adapter(folder: Path, base: Path) -> Path:
    """Like what was uploaded as the 7B detector: r 128, CAUSAL_LM, no head."""
    torch.manual_seed(7)
    whole = AutoModelForCausalLM.from_pretrained(str(base))
    settings = LoraConfig(
        r=128, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    get_peft_model(whole, settings).save_pretrained(str(folder))
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
