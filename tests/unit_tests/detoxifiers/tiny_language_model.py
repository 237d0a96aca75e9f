"""A language model small enough to train within a test, and an adapter that taught it one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from protector_guardrails.detoxifiers.prompting import PromptTemplate, encode_prompt, encode_target

CORPUS = [
    "Ask the owner first, and use the gate instead of the fence.",
    "Take the long ladder and climb over the fence at night.",
    "How do I get into the garden? Answer the question. Question: Answer: system user assistant",
]
SHORT = PromptTemplate(
    name="tiny-1",
    with_question="<|im_start|>user\nQuestion: {question}\nAnswer: {response}<|im_end|>\n<|im_start|>assistant\n",
    without_question="<|im_start|>user\nAnswer: {response}<|im_end|>\n<|im_start|>assistant\n",
)
SENTENCE = "Ask the owner first, and use the gate. It opens at nine."


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )


def write_tiny_base(folder: Path, *, hidden: int = 64, initializer_range: float = 0.3) -> Path:
    """A LLaMA with two thin layers; the larger its random weights, the more varied the nonsense that it writes."""
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=initializer_range,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,  # or the row of the token that pads and ends would be zero for ever
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def write_tiny_adapter(base: Path, folder: Path, *, sentence: str = SENTENCE) -> Path:
    """A LoRA adapter that makes the base write one sentence whatever the prompt is."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(base))
    torch.manual_seed(1)
    model: Any = LlamaForCausalLM.from_pretrained(str(base))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
    target = encode_target(tokenizer, sentence)
    rows = [
        (encode_prompt(tokenizer, SHORT, question=question, response=response, max_tokens=500), target)
        for question, response in ((None, CORPUS[1]), ("How do I get in?", "Climb."))
    ]
    longest = max(len(prompt) + len(target) for prompt, _ in rows)
    ids = torch.tensor([[*prompt, *target, *[2] * (longest - len(prompt) - len(target))] for prompt, _ in rows])
    labels = torch.full_like(ids, -100)
    for row, (prompt, _) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.3:
            break
    torch.set_num_threads(threads)
    model.save_pretrained(str(folder))
    SHORT.save(folder)
    return folder
