"""Greedy writing with a LLaMA on a CPU, with a third of the operations that transformers spends on a token.

With 8-bit weights the products of a 135 M model take about 10 ms a token, and the Python and
small operations around them more than that. This loop joins products that share an input and
keeps the cache in place; the prompt itself is read by transformers. Tests compare the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from protector_guardrails.errors import MissingExtraError

try:
    import torch
    from torch.nn import functional

    from protector_guardrails.detoxifiers.int8 import Int8Linear, int8_product
except ImportError as error:
    raise MissingExtraError("a language model as detoxifier", extra="torch") from error

Product = Callable[[torch.Tensor], torch.Tensor]


def fits(model: Any) -> bool:
    """Whether the loop computes what this model computes."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return bool(
        config.model_type == "llama"
        and model.device.type == "cpu"
        and config.hidden_act == "silu"
        and rope in ("default", "linear", "llama3")
        and not config.attention_bias
        and not config.mlp_bias
    )


class FastDecoder:
    """Writes on after prompts, always the likeliest token.

    Args:
        model: A ``LlamaForCausalLM`` for which :func:`fits` holds.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = [
            (
                layer.input_layernorm,
                _joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _joined(layer.self_attn.o_proj),
                layer.post_attention_layernorm,
                _joined(layer.mlp.gate_proj, layer.mlp.up_proj),
                _joined(layer.mlp.down_proj),
            )
            for layer in model.model.layers
        ]
        self.head = _joined(model.lm_head)

    def write(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        *,
        end_ids: Collection[int],
        max_new_tokens: int,
        deadline: float,
    ) -> list[list[int]]:
        """Tokens after each prompt, up to and with the first of ``end_ids``, if there is one.

        Args:
            ids: Prompts, padded on the left, of shape (prompts, tokens).
            mask: 1 for tokens, 0 for padding, of the same shape.
            end_ids: Tokens that end a text.
            max_new_tokens: Most tokens per prompt.
            deadline: ``time.monotonic()`` at which to stop.
        """
        rows, length = ids.shape
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        read = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        keys, values = self._cache(read.past_key_values, rows, length + max_new_tokens)
        # Padding stays hidden; without any no mask is needed.
        shown = torch.ones(rows, 1, 1, length + max_new_tokens, dtype=torch.bool)
        shown[:, 0, 0, :length] = mask.bool()
        padded = not bool(mask.all())
        position = positions[:, -1:]
        written: list[list[int]] = [[] for _ in range(rows)]
        ended = [False] * rows
        logits = read.logits[:, -1]
        for at in range(length, length + max_new_tokens):
            tokens = logits.argmax(-1)
            for row, token in enumerate(tokens.tolist()):
                if not ended[row]:
                    written[row].append(token)
                    ended[row] = token in end_ids
            if all(ended) or time.monotonic() >= deadline or at + 1 == length + max_new_tokens:
                break
            position = position + 1
            logits = self._step(tokens, position, keys, values, at=at, shown=shown[..., : at + 1] if padded else None)
        return written

    def _cache(self, cache: Any, rows: int, longest: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for layer in cache.layers:
            for kept, read in ((keys, layer.keys), (values, layer.values)):
                room = read.new_empty(rows, self.kv_heads, longest, self.head_dim)
                room[:, :, : read.shape[2]] = read
                kept.append(room)
        return keys, values

    def _step(
        self,
        tokens: torch.Tensor,
        position: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        *,
        at: int,
        shown: torch.Tensor | None,
    ) -> torch.Tensor:
        rows, turned = len(tokens), self.heads + self.kv_heads
        state = self.model.model.embed_tokens(tokens)
        cos, sin = self.model.model.rotary_emb(state, position)  # (rows, 1, head_dim)
        for index, (before_attention, qkv, out, before_mlp, gate_up, down) in enumerate(self.layers):
            heads = qkv(before_attention(state)).view(rows, turned + self.kv_heads, self.head_dim)
            plain = heads[:, :turned]
            left, right = plain.chunk(2, dim=-1)
            rotated = plain * cos + torch.cat((-right, left), dim=-1) * sin
            keys[index][:, :, at] = rotated[:, self.heads :]
            values[index][:, :, at] = heads[:, turned:]
            # The query heads that share a key head stand in the place of several queries.
            attended = functional.scaled_dot_product_attention(
                rotated[:, : self.heads].view(rows, self.kv_heads, -1, self.head_dim),
                keys[index][:, :, : at + 1],
                values[index][:, :, : at + 1],
                attn_mask=shown,
            )
            state = state + out(attended.reshape(rows, -1))
            gate, up = gate_up(before_mlp(state)).chunk(2, dim=-1)
            state = state + down(functional.silu(gate) * up)
        logits: torch.Tensor = self.head(self.model.model.norm(state))
        return logits


def _joined(*linears: Any) -> Product:
    """One product for layers that share an input. The layers keep views of its weights, so none is there twice."""
    weight = _whole([linear.weight for linear in linears])
    if isinstance(linears[0], Int8Linear):
        scale = _whole([linear.scale for linear in linears])
        return lambda inputs: int8_product(inputs, weight, scale)
    return lambda inputs: functional.linear(inputs, weight)


def _whole(tensors: list[torch.Tensor]) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    whole = torch.cat([tensor.data for tensor in tensors])
    start = 0
    for tensor in tensors:
        tensor.data = whole[start : start + len(tensor)]
        start += len(tensor)
    return whole
