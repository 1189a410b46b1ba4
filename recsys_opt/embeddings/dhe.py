"""`DHEEmbeddingBag`: rows computed from their ids by hash functions and a small network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from recsys_opt import ops
from recsys_opt.embeddings.bag_arguments import (
    POOLING_MODES,
    check_mode,
    check_padding,
    check_weighted,
    refuse_dense_options,
)
from recsys_opt.embeddings.base import GroupedRepresentation
from recsys_opt.embeddings.frozen import FrozenEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.tables import Pooling, TableConfig

Encoding = Literal["uniform", "gaussian"]
Level = Literal["decoder", "dense"]
BUCKETS = 1_000_000
"""Values of a hash function, as published."""
MOST_PRIME = 2**31 - 1
INIT_STD = 0.1
"""Standard deviation of a new table's entries; see `reset_parameters`."""
STORED_BYTES = 64 << 20
"""Up to this size `freeze` stores a table's rows."""
DHE_OPTIONS = frozenset({"hashes", "widths", "buckets", "prime", "encoding"})
"""Of a table in a `TableConfig`."""
_BLOCK_ROWS = 1 << 14


def next_prime(least: int) -> int:
    """The smallest prime that is not below `least`."""
    n = max(least, 2)
    while any(n % d == 0 for d in range(2, math.isqrt(n) + 1)):
        n += 1
    return n


class DHEEmbeddingBag(GroupedRepresentation):
    """A drop-in for `nn.EmbeddingBag` without a table: deep hash embedding (Kang et al. 2021).

    Row x is a small network's output for the encoding of x: k hash functions
    ((a x + b) mod prime) mod buckets, each brought to [-1, 1]. Its parameters are the network's; the a and b
    are drawn once, from torch's global generator, and kept as a buffer.

    num_embeddings  ids are below it; it does not change the size
    embedding_dim   columns
    hashes          k, the width of the encoding
    widths          of the network's layers between the encoding and the row, each with a ReLU behind it
    buckets         values of a hash function
    prime           default: the next prime that is larger than `buckets` and no smaller than num_embeddings.
                    Ids that are equal modulo the prime have one row: with 1000003, the next prime behind
                    a million, a table of ten million ids has only so many different rows
    encoding        "uniform" in [-1, 1], or "gaussian": standard normal numbers, by Box and Muller from pairs
                    of hashes, which on the CPU take about twice as long to make
    mode            "sum" or "mean"
    padding_idx     an id that counts for nothing: no row, no gradient, no part in a mean
    include_last_offset  offsets has one more entry, the end of the last bag

    What differs from nn.EmbeddingBag is what differs for `TTEmbeddingBag`: "sum" by default, no "max",
    max_norm, scale_grad_by_freq or sparse; wrong ids are refused; gradients are dense, of the network's
    parameters, and cannot be differentiated again. Parameters are float32 or float64.

    Each distinct id of a batch is computed once. On the CPU encodings are made block by block as the first
    layer takes them: they are never in memory as a whole, for the backward pass neither.
    `recsys_opt.ops.tt_allow_bf16(True)` rounds the operands of products to bf16, which takes two thirds of
    the time.
    """

    hashes: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        hashes: int = 1024,
        widths: Sequence[int] = (128,),
        buckets: int = BUCKETS,
        prime: int | None = None,
        encoding: Encoding = "uniform",
        mode: Pooling = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        refuse_dense_options(max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        if prime is None:
            prime = next_prime(max(buckets + 1, num_embeddings))
        _check_sizes(num_embeddings, embedding_dim, hashes, widths, buckets, prime, encoding)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype = {dtype}; a deep hash embedding computes in float32 or float64")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.widths, self.buckets, self.prime, self.encoding = tuple(widths), buckets, prime, encoding
        self.mode, self.include_last_offset = mode, include_last_offset
        self.padding_idx = check_padding(padding_idx, num_embeddings)
        layers = list(zip([hashes, *widths], [*widths, embedding_dim], strict=True))
        self.register_buffer("hashes", torch.empty(2, hashes, dtype=torch.int64, device=device))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(n, m, dtype=dtype, device=device)) for n, m in layers
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.empty(m, dtype=dtype, device=device)) for _, m in layers
        )
        self._numbers = [
            len(layers),
            num_embeddings,
            prime,
            buckets,
            ops.DHE_ENCODINGS[encoding],
            POOLING_MODES[mode],
            -1 if self.padding_idx is None else self.padding_idx,
        ]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, table_std: float = INIT_STD) -> None:
        """Draws hash functions and weights anew, from torch's global generator.

        Layers before a ReLU are He's, for inputs of the encoding's spread, so that each hidden layer's
        outputs have a mean square of about 1; biases are zero. The last layer's weights give table entries
        the standard deviation `table_std`.
        """
        if self.hashes.is_meta:  # nothing is drawn there, but torch loads its compiler, 1.7 s, to know
            return
        self.hashes[0].random_(1, self.prime)
        self.hashes[1].random_(0, self.prime)
        square = 1.0 / 3.0 if self.encoding == "uniform" else 1.0  # an input's mean square
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs, last = weight.shape[0], layer == len(self.widths)
            wanted = table_std**2 if last else 2.0
            weight.normal_(0.0, math.sqrt(wanted / (inputs * square)))
            bias.zero_()
            square = 1.0  # of half the outputs, the others are 0: 2 / 2

    @classmethod
    def from_config(
        cls,
        config: TableConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The module for a table; its options are hashes, widths, buckets, prime and encoding."""
        return cls._configured(config, "dhe", DHE_OPTIONS, {}, device=device, dtype=dtype)

    @classmethod
    def forward_group(
        cls,
        bags: Sequence[Self],
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows of several tables in one launch; see `EmbeddingRepresentation.forward_group`."""
        hashes: list[Tensor] = []
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        numbers: list[int] = []
        for bag in bags:
            own = bag.decoder_tensors()
            hashes.append(own[0])
            weights += own[1]
            biases += own[2]
            numbers += bag._numbers
        if per_sample_weights is not None:
            check_weighted(bag.mode for bag in bags)
            per_sample_weights = per_sample_weights.to(weights[0].dtype)
        bounds = None if offsets is None else offsets.to(torch.int64)
        return ops.dhe_embedding_bag(indices, bounds, hashes, weights, biases, numbers, per_sample_weights)

    def decoder_tensors(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The hash functions [2, k], the layers' weights [in, out] and biases [out]."""
        # Not by their names, each of which takes Python 1 us to find.
        modules, buffers = self._modules, self._buffers
        weights, biases = (
            list(cast(nn.Module, modules[name])._parameters.values()) for name in ("weights", "biases")
        )
        return cast(Tensor, buffers["hashes"]), cast("list[Tensor]", weights), cast("list[Tensor]", biases)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids [N], [N, embedding_dim], padding_idx's as any other's."""
        hashes, weights, biases = self.decoder_tensors()
        numbers = [*self._numbers[:5], 0, -1]
        return ops.dhe_embedding_bag(ids, None, [hashes], weights, biases, numbers)

    def materialize(self, rows: range | None = None, *, out: Tensor | None = None) -> Tensor:
        """The table, [num_embeddings, embedding_dim], or a range of its rows; differentiable without `out`.

        out  where to write, block by block, in any floating-point type
        """
        rows = range(self.num_embeddings) if rows is None else rows
        device = self.hashes.device
        blocks = (rows[i : i + _BLOCK_ROWS] for i in range(0, len(rows), _BLOCK_ROWS))
        made = (self.rows(torch.arange(b.start, b.stop, b.step, device=device)) for b in blocks)
        if out is None:
            return torch.cat(list(made)) if len(rows) else self.rows(torch.arange(0, device=device))
        with torch.no_grad():
            first = 0
            for block in made:
                out[first : first + len(block)] = block
                first += len(block)
        return out

    def freeze(
        self,
        level: Level | None = None,
        *,
        dtype: torch.dtype | None = None,
        max_bytes: int = STORED_BYTES,
    ) -> DHEEmbeddingBag | FrozenEmbeddingBag:
        """A copy for serving, in evaluation mode and without gradients, that computes what this does.

        level      dense: every row computed now and stored, as `FrozenEmbeddingBag`; decoder: rows computed
                   at each lookup; default: dense where the rows fit into `max_bytes`
        dtype      of stored rows, e.g. torch.bfloat16; default: the parameters'
        max_bytes  see level
        """
        if level not in (None, "decoder", "dense"):
            raise InputError(f"level = {level!r}; choose 'decoder' or 'dense', or leave it to max_bytes")
        found = self.weights[0].dtype if dtype is None else dtype
        if not found.is_floating_point:
            raise InputError(f"dtype = {dtype}; it must be a floating-point type")
        if level == "dense" or (level is None and self.stored_bytes(found) <= max_bytes):
            return self._stored(found)
        weights, biases = ([p.detach().clone() for p in own] for own in (self.weights, self.biases))
        return self._of_tensors(
            self.hashes.clone(), weights, biases, self.mode, self.padding_idx, self.include_last_offset
        )

    def pooling_by_sum(self) -> DHEEmbeddingBag:
        """For serving: this bag without a copy, as sums, with no padding."""
        weights, biases = ([p.detach() for p in own] for own in (self.weights, self.biases))
        return self._of_tensors(self.hashes, weights, biases, "sum", None, False)

    def _of_tensors(
        self,
        hashes: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        mode: Pooling,
        padding_idx: int | None,
        include_last_offset: bool,
    ) -> DHEEmbeddingBag:
        bag = type(self)(
            self.num_embeddings,
            self.embedding_dim,
            **self._options(),
            mode=mode,
            padding_idx=padding_idx,
            include_last_offset=include_last_offset,
            dtype=weights[0].dtype,
            device="meta",
        )
        bag.hashes = hashes
        for name, tensors in (("weights", weights), ("biases", biases)):
            setattr(bag, name, nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in tensors))
        return bag.eval()

    def stored_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of all rows, stored one by one."""
        size = (self.weights[0].dtype if dtype is None else dtype).itemsize
        return self.num_embeddings * self.embedding_dim * size

    def _stored(self, dtype: torch.dtype) -> FrozenEmbeddingBag:
        shape = (self.num_embeddings, self.embedding_dim)
        table = torch.empty(shape, dtype=dtype, device=self.hashes.device)
        return FrozenEmbeddingBag.of_rows(
            self.materialize(out=table),
            mode=self.mode,
            padding_idx=self.padding_idx,
            include_last_offset=self.include_last_offset,
        )

    def _options(self) -> dict[str, Any]:
        return {
            "hashes": self.hashes.shape[1],
            "widths": list(self.widths),
            "buckets": self.buckets,
            "prime": self.prime,
            "encoding": self.encoding,
        }

    def settled_options(self) -> dict[str, Any]:
        """All of them: the hash functions belong to the prime and the buckets."""
        return self._options()

    def storage_bytes(self) -> int:
        """Bytes of the network and of the hash functions."""
        tensors: Iterable[Tensor] = (self.hashes, *self.weights, *self.biases)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def flops_per_lookup(self) -> int:
        """Floating-point operations of the network for one id; its hashes are integer work besides."""
        return sum(2 * weight.numel() for weight in self.weights)

    def extra_repr(self) -> str:
        """Shape, hashes, layers and pooling."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        last = ", include_last_offset=True" if self.include_last_offset else ""
        layers = "-".join(map(str, [self.hashes.shape[1], *self.widths, self.embedding_dim]))
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, {layers}, buckets={self.buckets}, "
            f"prime={self.prime}, encoding={self.encoding!r}, mode={self.mode!r}{padding}{last}"
        )


def _check_sizes(
    num_embeddings: int,
    embedding_dim: int,
    hashes: int,
    widths: Sequence[int],
    buckets: int,
    prime: int,
    encoding: str,
) -> None:
    for name, value in (
        ("num_embeddings", num_embeddings),
        ("embedding_dim", embedding_dim),
        ("hashes", hashes),
        *(("widths", width) for width in widths),
    ):
        if value < 1:
            raise InputError(f"{name} = {value}; it must be at least 1")
    if encoding not in ops.DHE_ENCODINGS:
        raise InputError(f"encoding = {encoding!r}; choose one of {', '.join(ops.DHE_ENCODINGS)}")
    if encoding == "gaussian" and hashes % 2:
        raise InputError(f"hashes = {hashes}; a gaussian encoding makes numbers in pairs: take an even one")
    if buckets < 2:
        raise InputError(f"buckets = {buckets}; it must be at least 2")
    if not buckets <= prime <= MOST_PRIME:
        raise InputError(
            f"prime = {prime}; it must be a prime from buckets = {buckets} to {MOST_PRIME} (num_embeddings "
            "as well must not be above that)"
        )
    if next_prime(prime) != prime:
        raise InputError(f"prime = {prime} is no prime; the next one is {next_prime(prime)}")
