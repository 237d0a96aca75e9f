"""A GGUF file made into safetensors: ``python -m protector_guardrails.models.conversion FILE FOLDER``.

A process of its own, started by :func:`protector_guardrails.models.mirror.convert_gguf`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path) -> None:
    """Write model (float16) and tokenizer into ``folder``."""
    import torch
    import transformers

    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float16, **where)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    # The weights are plain numbers now; saving refuses while it takes them for quantised ones.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
