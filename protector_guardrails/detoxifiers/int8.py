"""Linear layers with 8-bit weights, for language models on a CPU.

Writing a token means reading every weight once, so weights of a quarter of the size make it
several times faster than float32; ``benchmarks/bench_detoxifier.py`` measures by how much.
"""

from __future__ import annotations

from protector_guardrails.errors import MissingExtraError

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("a language model as detoxifier", extra="torch") from error

_FEW_ROWS = 16


class Int8Linear(nn.Module):
    """A linear layer whose weights are integers with one scale per output, chosen symmetrically.

    Activations are not quantised, so a row's result does not depend on its neighbours in a batch.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        self.register_buffer("weight", torch.round(weight / scale[:, None]).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``inputs @ weight.T * scale + bias``; of shape (..., inputs) to (..., outputs)."""
        product = int8_product(inputs.reshape(-1, inputs.shape[-1]), self.weight, self.scale)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*inputs.shape[:-1], -1)


def int8_product(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.T * scale``, of shapes (rows, inputs), (outputs, inputs) and (outputs)."""
    # The kernel reads whole blocks, beyond the end of a matrix that is not made of them.
    in_blocks = weight.shape[1] % 64 == 0 and weight.shape[0] % 16 == 0
    product: torch.Tensor
    if in_blocks and len(rows) <= _FEW_ROWS and rows.dtype == torch.bfloat16:
        product = torch.ops.aten._weight_int8pack_mm(rows, weight, scale.to(rows.dtype))
    else:  # for the rows of a prompt an ordinary product is faster
        product = nn.functional.linear(rows, weight.to(rows.dtype)) * scale
    return product


def quantize_linears(model: nn.Module) -> nn.Module:
    """Replace every linear layer of a float32 model in place, and make the rest bfloat16."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    return model.to(torch.bfloat16)
