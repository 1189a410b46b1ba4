"""Readable torch versions of the native ops: the specification that tests hold them to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dot_interaction(dense: Tensor, sparse: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """DLRM's dot interaction: every pair of feature vectors gives its dot product.

    dense    [B, D] vector 0
    sparse   each [B, F_p * D]; laid side by side they hold F = len(order) column blocks
    order    vector v is column block order[v - 1]
    returns  [B, D + F * (F + 1) / 2] `dense`, then the dot products of the vectors i > j, row by row:
             (1, 0), (2, 0), (2, 1), (3, 0), ...
    """
    dim = dense.shape[1]
    blocks = [b for piece in sparse for b in piece.to(dense.dtype).split(dim, dim=1)]
    vectors = torch.stack([dense, *(blocks[position] for position in order)], dim=1)  # [B, F + 1, D]
    products = torch.bmm(vectors, vectors.transpose(1, 2))  # [B, F + 1, F + 1]
    i, j = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1, device=dense.device)
    return torch.cat([dense, products[:, i, j]], dim=1)


def dense_bag(
    weights: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[bool],
) -> Tensor:
    """Rows of many dense tables, summed or averaged over bags, in torchrec's memory order.

    weights             T x [rows_t, D_t]
    indices             [N] ids, feature-major
    offsets             [T * B + 1] bag b of table t is indices[offsets[t * B + b] : offsets[t * B + b + 1]];
                        None: one id per bag
    per_sample_weights  [N] factors of the rows
    mean                [T] whether a table averages
    returns             [B, sum D_t]; an empty bag gives zeros
    """
    if offsets is None:
        offsets = torch.arange(indices.numel() + 1, device=indices.device)
    batch = (offsets.numel() - 1) // len(weights)
    outputs = []
    for t, weight in enumerate(weights):
        for b in range(batch):
            bag = slice(int(offsets[t * batch + b]), int(offsets[t * batch + b + 1]))
            rows = weight[indices[bag].long()]
            if per_sample_weights is not None:
                rows = rows * per_sample_weights[bag, None]
            divisor = max(rows.shape[0], 1) if mean[t] else 1
            outputs.append(rows.sum(0) / divisor)
    columns = [
        torch.cat([weight[:0], *(row[None] for row in outputs[t * batch : (t + 1) * batch])])
        for t, weight in enumerate(weights)
    ]
    return torch.cat(columns, dim=1)


def adagrad_(
    parameters: Sequence[Tensor], states: Sequence[Tensor], grads: Sequence[Tensor], lr: float, eps: float
) -> None:
    """state += grad^2;  parameter -= lr * grad / (sqrt(state) + eps), for every tensor."""
    for parameter, state, grad in zip(parameters, states, grads, strict=True):
        state += grad.square()
        parameter -= lr * grad / (state.sqrt() + eps)


def dense_bag_backward_update(
    grad: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mean: Sequence[int],
    factors_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """Updates the rows that a batch looks up from their gradients; no other number changes.

    grad             [B, sum D_t] of the output of `dense_bag`, whose arguments the others are
    states           per table: SGD none; Adagrad [rows, D]; row-wise Adagrad [rows]; Adam two [rows, D]
    algorithm        0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam; csrc/tt/tt_update.h has the rules
    hyperparameters  [6] float64: lr, eps, beta1, beta2, weight_decay, step (of this update, from 1)
    returns          the gradient of per_sample_weights where `factors_grad`, else nothing: [0]

    Features with the same table add their gradients before the one update.
    """
    leaves = [weight.detach().clone().requires_grad_() for weight in weights]
    factors = None if per_sample_weights is None else per_sample_weights.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = dense_bag(leaves, indices, offsets, factors, [bool(m) for m in mean])
    wanted = [*leaves, *([factors] if factors is not None else [])]
    grads = torch.autograd.grad(output, wanted, grad, allow_unused=True, materialize_grads=True)
    bags, per_table = grad.shape[0], len(states) // len(weights)
    totals: dict[int, Tensor] = {}
    used: dict[int, Tensor] = {}
    for t, weight in enumerate(weights):
        first, last = t * bags, (t + 1) * bags
        ids = indices[first:last] if offsets is None else indices[offsets[first] : offsets[last]]
        key = weight.data_ptr()
        used.setdefault(key, torch.zeros(weight.shape[0], dtype=torch.bool))[ids.long()] = True
        totals[key] = totals[key] + grads[t] if key in totals else grads[t]
    for t, weight in enumerate(weights):
        if weight.data_ptr() in totals:  # else updated as an earlier feature's
            own, key = states[t * per_table : (t + 1) * per_table], weight.data_ptr()
            _update_slices(weight, own, totals.pop(key), used[key], algorithm, hyperparameters)
    return grads[-1] if factors_grad else grad.new_empty(0)


def _update_slices(
    weight: Tensor,
    states: Sequence[Tensor],
    gradient: Tensor,
    used: Tensor,
    algorithm: int,
    hyperparameters: Tensor,
) -> None:
    """The rules of csrc/tt/tt_update.h on the used slices weight[i]: rows of a table or parts of a core."""
    lr, eps, beta1, beta2, decay, step = hyperparameters.tolist()
    i = used
    g = gradient[i] + decay * weight[i]
    if algorithm == 0:
        weight[i] -= lr * g
    elif algorithm == 1:
        states[0][i] += g.square()
        weight[i] -= lr * g / (states[0][i].sqrt() + eps)
    elif algorithm == 2:
        states[0][i] += g.square().flatten(1).mean(1)
        weight[i] -= lr * g / (states[0][i].sqrt() + eps).view(-1, *[1] * (g.dim() - 1))
    else:
        states[0][i] += (1 - beta1) * (g - states[0][i])
        states[1][i] = beta2 * states[1][i] + (1 - beta2) * g.square()
        root = (states[1][i] / (1 - beta2**step)).sqrt()
        weight[i] -= lr / (1 - beta1**step) * states[0][i] / (root + eps)


def sgd_rows_(weights: Sequence[Tensor], ids: Sequence[Tensor], grads: Sequence[Tensor], lr: float) -> None:
    """weight[i] -= lr * (sum of the gradients of id i), for every table."""
    for weight, i, grad in zip(weights, ids, grads, strict=True):
        weight.index_add_(0, i, grad, alpha=-lr)


def rowwise_adagrad_rows_(
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    ids: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    eps: float,
) -> None:
    """With g = the sum of the gradients of id i, once for every id that occurs, in every table:

    state[i] += mean(g^2);  weight[i] -= lr * g / (sqrt(state[i]) + eps)
    """
    for weight, state, i, grad in zip(weights, states, ids, grads, strict=True):
        unique, inverse = i.unique(return_inverse=True)
        g = grad.new_zeros(unique.numel(), grad.shape[1]).index_add_(0, inverse, grad)
        state[unique] += g.square().mean(1)
        weight[unique] -= lr * g / (state[unique].sqrt() + eps)[:, None]


def tt_rows(indices: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Rows of a tensor-train table (Oseledets 2011, eq. 1.3).

    indices  [N] ids i = (i_0 n_1 + i_1) n_2 + ...
    cores    d x [n_k, q_k, r_k, r_{k+1}], r_0 = r_d = 1
    returns  [N, q_0 q_1 ...]: element j is the product over k of the matrices cores[k][i_k, j_k]
    """
    digits: list[Tensor] = []
    for core in reversed(cores):
        digits.insert(0, indices % core.shape[0])
        indices = indices // core.shape[0]
    rows = cores[0][digits[0]].squeeze(2)  # [N, j, r]
    for core, digit in zip(cores[1:], digits[1:], strict=True):
        rows = torch.einsum("njr,nqrs->njqs", rows, core[digit]).flatten(1, 2)
    return rows.squeeze(2)


def tt_embedding_bag(
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    *,
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Pooled rows of several tensor-train tables; the arguments are those of `ops.tt_embedding_bag`, with 1-D
    ids and all bounds of the bags."""
    batch = (offsets.numel() - 1) // len(cores_per_table)
    outputs, first = [], 0
    for t, d in enumerate(cores_per_table):
        bounds = offsets[t * batch : (t + 1) * batch + 1].long()
        ids = indices[bounds[0] : bounds[-1]].long()
        assert torch.all((ids >= 0) & (ids < num_embeddings[t]))
        kept = ids != padding_idx[t]
        bags = torch.repeat_interleave(torch.arange(batch, device=ids.device), bounds.diff())[kept]
        rows = tt_rows(ids[kept], cores[first : first + d])
        if per_sample_weights is not None:
            rows = rows * per_sample_weights[bounds[0] : bounds[-1]][kept, None]
        pooled = rows.new_zeros(batch, rows.shape[1]).index_add(0, bags, rows)
        if pooling_modes[t] == 1:
            pooled = pooled / torch.bincount(bags, minlength=batch).clamp(min=1)[:, None]
        outputs.append(pooled)
        first += d
    return torch.cat(outputs, dim=1)


def tt_prefix_bag(
    indices: Tensor,
    offsets: Tensor | None,
    prefixes: Sequence[Tensor],
    lasts: Sequence[Tensor],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
) -> Tensor:
    """Pooled rows of several frozen tables; the arguments are those of `ops.tt_prefix_bag`.

    Element a t_0 + j of core 0's columns, at step p s + k of the bond, is prefix[:, a, p, j, k].
    """
    cores = []
    for prefix, last in zip(prefixes, lasts, strict=True):
        plain = [core.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2) for core in (prefix, last)]  # [n, q, r]
        cores += [plain[0].unsqueeze(2), plain[1].unsqueeze(3)]
    end = torch.tensor([indices.numel()])
    if offsets is None:
        offsets = torch.arange(indices.numel() + 1)
    elif not include_last_offset:
        offsets = torch.cat([offsets, end.to(offsets.dtype)])
    return tt_embedding_bag(
        indices,
        offsets,
        cores,
        cores_per_table=[2] * len(prefixes),
        num_embeddings=num_embeddings,
        pooling_modes=pooling_modes,
        padding_idx=padding_idx,
        per_sample_weights=per_sample_weights,
    )


def tt_embedding_bag_backward_update(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    cores: Sequence[Tensor],
    states: Sequence[Tensor],
    cores_per_table: Sequence[int],
    num_embeddings: Sequence[int],
    pooling_modes: Sequence[int],
    padding_idx: Sequence[int],
    per_sample_weights: Tensor | None,
    weights_grad: bool,
    algorithm: int,
    hyperparameters: Tensor,
) -> Tensor:
    """Updates the slices cores[c][i] that a batch uses from their gradients; no other number changes.

    grad             [B, columns] of the output of `tt_embedding_bag`, whose arguments the others are
    states           per core: SGD none; Adagrad [n, q, r, r']; row-wise Adagrad [n]; Adam two [n, q, r, r']
    algorithm        0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam; csrc/tt/tt_update.h has the rules
    hyperparameters  [6] float64: lr, eps, beta1, beta2, weight_decay, step (of this update, from 1)
    returns          the gradient of per_sample_weights where `weights_grad`, else nothing: [0]

    A slice is used when an id of a bag has its digit, the padding id excepted. Tables with the same cores add
    their gradients before the one update.
    """
    leaves = [core.detach().clone().requires_grad_() for core in cores]
    weights = None if per_sample_weights is None else per_sample_weights.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = tt_embedding_bag(
            indices,
            offsets,
            leaves,
            cores_per_table=cores_per_table,
            num_embeddings=num_embeddings,
            pooling_modes=pooling_modes,
            padding_idx=padding_idx,
            per_sample_weights=weights,
        )
    wanted = [*leaves, *([weights] if weights is not None else [])]
    grads = torch.autograd.grad(output, wanted, grad)
    batch, per_core = (offsets.numel() - 1) // len(cores_per_table), len(states) // len(cores)
    sums: dict[int, Tensor] = {}
    used: dict[int, Tensor] = {}
    first = 0
    for t, d in enumerate(cores_per_table):
        ids = indices[offsets[t * batch] : offsets[(t + 1) * batch]].long()
        ids = ids[ids != padding_idx[t]]
        for c in reversed(range(first, first + d)):
            rows, key = cores[c].shape[0], cores[c].data_ptr()
            used.setdefault(key, torch.zeros(rows, dtype=torch.bool))[ids % rows] = True
            sums[key] = sums[key] + grads[c] if key in sums else grads[c]
            ids = ids // rows
        first += d
    for c, core in enumerate(cores):
        if core.data_ptr() not in sums:  # updated as another table's
            continue
        own = states[c * per_core : (c + 1) * per_core]
        key = core.data_ptr()
        _update_slices(core, own, sums.pop(key), used[key], algorithm, hyperparameters)
    return grads[-1] if weights_grad else grad.new_empty(0)


def dhe_encode(
    ids: Tensor,
    hashes: Tensor,
    *,
    num_embeddings: int,
    prime: int,
    buckets: int,
    encoding: int,
    like: Tensor,
) -> Tensor:
    """The encodings of ids in a deep hash embedding, [N, k]; the arguments are those of `ops.dhe_encode`."""
    assert torch.all((ids >= 0) & (ids < num_embeddings))
    a, b = hashes % prime
    h = ((ids[:, None] % prime * a + b) % prime % buckets).double()
    if encoding == 0:
        uniform: Tensor = 2 * h / (buckets - 1) - 1
        return uniform.to(like.dtype)
    u, v = ((h + 0.5) / buckets).unflatten(1, (-1, 2)).unbind(2)
    radius, angle = (-2 * u.log()).sqrt(), 2 * torch.pi * v
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1).to(like.dtype)


def dhe_embedding_bag(
    indices: Tensor,
    offsets: Tensor | None,
    hashes: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Sequence[int],
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Pooled rows of several deep hash embeddings; the arguments are those of `ops.dhe_embedding_bag`.

    Every id is hashed, encoded and put through its table's MLP.
    """
    if offsets is None:
        offsets = torch.arange(indices.numel() + 1)
    batch = (offsets.numel() - 1) // len(hashes)
    outputs, first = [], 0
    for t in range(len(hashes)):
        layers, rows, prime, buckets, encoding, mean, padding = tables[7 * t : 7 * t + 7]
        bounds = offsets[t * batch : (t + 1) * batch + 1]
        ids = indices[bounds[0] : bounds[-1]].long()
        kept = ids != padding
        bags = torch.repeat_interleave(torch.arange(batch), bounds.diff())[kept]
        x = dhe_encode(
            ids[kept],
            hashes[t],
            num_embeddings=rows,
            prime=prime,
            buckets=buckets,
            encoding=encoding,
            like=weights[0],
        )
        for layer in range(first, first + layers):
            x = (x if layer == first else torch.relu(x)) @ weights[layer] + biases[layer]
        first += layers
        if per_sample_weights is not None:
            x = x * per_sample_weights[bounds[0] : bounds[-1]][kept, None]
        pooled = x.new_zeros(batch, x.shape[1]).index_add(0, bags, x)
        if mean == 1:
            pooled = pooled / torch.bincount(bags, minlength=batch).clamp(min=1)[:, None]
        outputs.append(pooled)
    return torch.cat(outputs, dim=1)
