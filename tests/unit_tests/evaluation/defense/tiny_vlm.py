"""A vision-language model small enough to be made within a test."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = ["user", ":", "assistant", "stir", "the", "soup", "slowly", "what", "is", "this", "?", "a", "cake", "how"]

_SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
_TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def write_tiny_vlm(folder: Path) -> Path:
    """A LLaVA of random weights with thin layers, a few words and pictures of 16 by 16 pixels."""
    vocabulary = [*_SPECIAL, *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )
    torch.manual_seed(1)
    thin = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, initializer_range=1.0, **thin),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary),
            max_position_embeddings=1024,
            initializer_range=1.0,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            **thin,
        ),
        image_token_index=4,
    )
    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder
