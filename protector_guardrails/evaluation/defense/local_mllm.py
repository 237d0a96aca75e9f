"""Asking a vision-language model on disk with transformers."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from protector_guardrails.errors import ConfigurationError, WeightsError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.images import check_askable, read_image
from protector_guardrails.evaluation.defense.mllms import one_line
from protector_guardrails.threads import run_in_thread

_SMALL = 1 << 20  # what is hashed of a folder besides the sizes of its weights


class LocalMllm:
    """A vision-language model, asked one question at a time, greedily.

    Weights are read from safetensors only; code that comes with them is not run and nothing is fetched.

    Args:
        folder: Model and processor as ``save_pretrained`` writes them, with a chat template.
        max_new_tokens: How long an answer may be.

    Raises:
        ConfigurationError: If the folder holds no such model.
        WeightsError: If some of the model's weights are missing: they would be random.
    """

    concurrency: int | None = 1

    def __init__(self, folder: Path, *, max_new_tokens: int = 512) -> None:
        import torch
        import transformers

        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder} is no folder of a model: it has no config.json")
        self.name = folder.resolve().name
        self.fingerprint = _fingerprint(folder, max_new_tokens)
        self._tokens = max_new_tokens
        self._lock = threading.Lock()  # a call that was given up goes on in its thread
        library: Any = transformers  # its own types say too little
        try:
            self._processor = library.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, told = library.AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype="auto",
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ConfigurationError(f"{folder} holds no model that can be loaded: {one_line(error)}") from error
        if missing := [*told["missing_keys"], *told["mismatched_keys"]]:
            raise WeightsError(
                f"{folder}: {len(missing)} weights are missing or of another shape, such as {missing[0]}"
            )
        if not getattr(self._processor, "chat_template", None):
            raise ConfigurationError(f"{folder} has no chat template, so its model cannot be asked a question")
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    async def answer(self, case: Case) -> str:
        """The text of its answer.

        Raises:
            UnanswerableError: If the case's image cannot be shown, or there is nothing to ask.
        """
        return await run_in_thread(self._answer, case)

    def _answer(self, case: Case) -> str:
        import torch

        check_askable(case)
        content: list[dict[str, Any]] = []
        if case.image is not None:
            _, _, picture = read_image(case.image)
            content.append({"type": "image", "image": picture.convert("RGB")})
        if case.question:
            content.append({"type": "text", "text": case.question})
        with self._lock, torch.inference_mode():
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device, dtype=self._model.dtype)
            written = self._model.generate(**inputs, max_new_tokens=self._tokens, do_sample=False)
        asked = inputs["input_ids"].shape[1]
        [text] = self._processor.batch_decode(written[:, asked:], skip_special_tokens=True)
        return str(text).strip()


def _fingerprint(folder: Path, max_new_tokens: int) -> str:
    """Of the contents of small files and the sizes of large ones."""
    digest = hashlib.sha256(f"{max_new_tokens}\n".encode())
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        content = hashlib.sha256(file.read_bytes()).hexdigest() if size <= _SMALL else str(size)
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
