"""What the kernels of tensor trains may use, and what they do about bad ids: settings of the process."""

from __future__ import annotations

from typing import NamedTuple

import torch

from recsys_opt.errors import InputError
from recsys_opt.ops.library import has_cuda_kernel


def tt_limit_isa(widest: int) -> int:
    """Holds the CPU kernels to an instruction set: 0 portable, 1 AVX2, 2 AVX-512 (the default).

    For tests and measurements. Returns the widest that they now use.
    """
    used: int = torch.ops.recsys_opt.tt_limit_isa(widest)
    return used


def tt_allow_bf16(allowed: bool) -> bool:
    """Lets the CPU kernels multiply float32 cores with operands rounded to bf16; returns what was before.

    Off by default: products are exact float32. With it, the products of a chain and those of its gradient
    round their operands on the way in (sums and stored results stay float32), which is about twice as fast
    where the processor has bf16 dot products (AVX-512 BF16) and the ranks are multiples of 16; elsewhere it
    changes nothing. So it is for the networks of deep hash embeddings, where layers are multiples of 16 wide
    and a call has 16 distinct ids of a table or more. A setting of the process, like
    torch.set_float32_matmul_precision("medium"); results differ from exact ones by some 2^-9 of a product's
    largest terms.
    """
    before: bool = torch.ops.recsys_opt.tt_allow_bf16(allowed)
    return before


# Settings of the CUDA kernels hold for the process. What finds an id out of range there cannot raise.

TT_BOUNDS_CHECKS = ("check", "clamp", "trust")


class BoundsReport(NamedTuple):
    """Ids and offsets out of range that CUDA kernels found and nothing has reported yet."""

    errors: int
    example: str
    """One of them; empty where there is none."""


def _cuda_setting(name: str, value: int = -1) -> int:
    if not has_cuda_kernel("tt_embedding_bag"):
        raise InputError(
            f"the setting {name!r} of the CUDA kernels needs a build with them: torch with CUDA and nvcc, "
            "then scripts/setup.sh"
        )
    before: int = torch.ops.recsys_opt.tt_cuda_setting(name, value)
    return before


def tt_bounds_check(mode: str | None = None) -> str:
    """Chooses what CUDA kernels do about ids and offsets out of range; returns the mode from before.

    check  (default) they count for nothing, as if absent; the next call on the device, or `tt_bounds_report`
           after it, says so: nothing waits for the device, and its context stays usable
    clamp  they count for nothing; `tt_bounds_report` counts them
    trust  nothing is checked: a bad id may read, and a fused update write, outside the tables

    It holds for the tensor trains and for the rows held dense beside them. A bag with an offset outside the
    ids, or below the one before, is empty; a first offset above 0 leaves the ids before it to no bag. A
    replayed CUDA graph notes errors, too; nothing raises them but the next call outside graphs, or a report.

    The CPU kernels always refuse them at once.
    """
    if mode is not None and mode not in TT_BOUNDS_CHECKS:
        raise InputError(f"bounds check {mode!r}; choose from {', '.join(TT_BOUNDS_CHECKS)}")
    return TT_BOUNDS_CHECKS[_cuda_setting("bounds", -1 if mode is None else TT_BOUNDS_CHECKS.index(mode))]


def tt_bounds_report(device: torch.device | int | None = None) -> BoundsReport:
    """What the CUDA kernels found out of range since the last report, on one device; waits for the device."""
    if not has_cuda_kernel("tt_embedding_bag"):
        return BoundsReport(0, "")
    index = device if isinstance(device, int) else None if device is None else device.index
    if index is None:
        index = torch.cuda.current_device()
    found: list[int] = torch.ops.recsys_opt.tt_bounds_report(index)
    count, kind, position, value, limit, table = found
    if not count:
        return BoundsReport(0, "")
    # By BoundsKind of csrc/tt/tt_bounds_cuda.cuh.
    example = (
        f"indices[{position}] = {value} is outside the table's {limit} rows (table {table})",
        f"offsets[{position}] = {value} is outside the {limit} indices",
        f"offsets[{position}] = {value} is less than offsets[{position - 1}] = {limit}",
        f"offsets[{position}] = {value}; the first bag must start at 0",
        f"slots[{position}] = {value} is outside the table's {limit} slots (table {table})",
        f"keys[{position}] = {value} is held by keys[{limit}] already",
        f"positions[{position}] = {value} is outside the table's {limit} rows (table {table})",
    )[kind]
    return BoundsReport(count, example)


def tt_allow_tf32(allowed: bool | None = None) -> bool:
    """Lets CUDA kernels multiply float32 cores on the tensor cores, rounded to tf32; returns what was before.

    Off by default: products are exact float32. Cores in half precision always use the tensor cores.
    """
    return bool(_cuda_setting("tf32", -1 if allowed is None else int(allowed)))


def tt_direct_lookups(most: int | None = None) -> int:
    """Chooses up to how many lookups a forward pass on CUDA goes without a plan; returns what was before.

    For tests and measurements: `scripts/gpu_check.sh` measures where the two paths cross.
    """
    return _cuda_setting("direct_lookups", -1 if most is None else most)
