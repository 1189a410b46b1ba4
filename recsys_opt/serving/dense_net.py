"""A DLRM without its tables: both MLPs and the interaction, with weights laid out once for products.

`PackedNet` calls oneDNN with weights that it has reordered beforehand and with the ReLU in the product, which
is what the Inductor's frozen graphs call: it is as fast as they are, needs no compiler and starts in
milliseconds (`recsys-opt bench serving-engines`). `PlainNet` is the modules as they were trained, on any
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.models.dlrm import DLRM

SMALL_BATCH = 48
"""Below it a product of oneDNN costs more than one of a matrix and a few vectors does."""

DenseNet = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""(dense [B, N], pooled rows [B, F_p * D] by group) -> probabilities [B]"""


class PlainNet:
    """The modules as they were trained, on any device."""

    def __init__(self, model: DLRM, order: Sequence[int]) -> None:
        """order  of the features in the groups side by side, as `ops.dot_interaction` has it"""
        self._bottom, self._top = _layers(model.bottom), _layers(model.top)
        self._interact = interaction(order, next(model.bottom.parameters()).device)

    def __call__(self, dense: Tensor, groups: Sequence[Tensor]) -> Tensor:
        """Probabilities, [B]."""
        for weight, bias in self._bottom:
            dense = torch._addmm_activation(bias, dense, weight)
        crossed = self._interact(dense, groups)
        for weight, bias in self._top[:-1]:
            crossed = torch._addmm_activation(bias, crossed, weight)
        weight, bias = self._top[-1]
        return torch.addmm(bias, crossed, weight).squeeze(1).sigmoid_()


class PackedNet:
    """oneDNN's products with packed weights, on the CPU.

    dtype  of the products: float32, or bfloat16, whose sums are float32
    """

    def __init__(self, model: DLRM, order: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._small = PlainNet(model, order) if dtype == torch.float32 else None
        self._bottom, self._top = (
            [_packed(layer, dtype) for layer in mlp if isinstance(layer, nn.Linear)]
            for mlp in (model.bottom, model.top)
        )
        self._interact = interaction(order, torch.device("cpu"))
        self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, dense: Tensor, groups: Sequence[Tensor]) -> Tensor:
        """Probabilities, [B]."""
        if self._small is not None and dense.shape[0] < SMALL_BATCH:
            return self._small(dense, groups)
        product = self._product
        dense = dense.to(self._dtype)
        for weight, bias in self._bottom:
            dense = product(dense, weight, bias, "relu", [], "")
        crossed = self._interact(dense.float(), groups).to(self._dtype)
        for weight, bias in self._top[:-1]:
            crossed = product(crossed, weight, bias, "relu", [], "")
        weight, bias = self._top[-1]
        logits: Tensor = product(crossed, weight, bias, "none", [], "")
        return logits.float().squeeze(1).sigmoid_()


def has_packed_products(dtype: torch.dtype) -> bool:
    """Whether torch was built with oneDNN's products of packed weights, and the processor has the type."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def interaction(order: Sequence[int], device: torch.device) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """The dot interaction on a device: the kernel where it has one, else torch's ops."""
    if device.type != "cpu" and not ops.has_cuda_kernel("dot_interaction"):
        return plain_interaction(order, device)
    run, at = ops.library.eager_op("dot_interaction"), list(order)
    return lambda dense, groups: run(dense, list(groups), at)


def plain_interaction(
    order: Sequence[int], device: torch.device
) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """The dot interaction in torch's ops; nothing but the arguments crosses to the device at a call."""
    vectors = 1 + len(order)
    below = torch.tril_indices(vectors, vectors, offset=-1, device=device)
    place = torch.tensor(list(order), device=device)

    def interact(dense: Tensor, groups: Sequence[Tensor]) -> Tensor:
        rows = torch.cat(list(groups), dim=1).view(dense.shape[0], len(place), dense.shape[1])
        stacked = torch.cat([dense.unsqueeze(1), rows.index_select(1, place)], dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        return torch.cat([dense, products[:, below[0], below[1]]], dim=1)

    return interact


def _layers(mlp: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight.detach().t(), m.bias.detach()) for m in mlp if isinstance(m, nn.Linear)]


def _packed(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().to(dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight, None), layer.bias.detach().to(dtype)
