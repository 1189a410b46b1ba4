"""The native ops, a module per subject: their Python faces, shapes (fake kernels) and gradients.

`recsys_opt.reference` says in plain torch what each op computes; `csrc/library.cpp` holds the schemas.
"""

from recsys_opt.ops.dense import adagrad_, dense_bag, dense_bag_updating, rowwise_adagrad_rows_, sgd_rows_
from recsys_opt.ops.dhe import DHE_ENCODINGS, dhe_embedding_bag, dhe_encode
from recsys_opt.ops.hot_rows import (
    hot_rows_bag,
    hot_rows_count_,
    hot_rows_directory_,
    hot_rows_split,
)
from recsys_opt.ops.interaction import dot_interaction
from recsys_opt.ops.library import CUDA_LIBRARY, LIBRARY, has_cuda_kernel
from recsys_opt.ops.row_update import RowUpdate
from recsys_opt.ops.tiered import tiered_ask_ahead, tiered_bag, tiered_bag_updating
from recsys_opt.ops.tt import tt_embedding_bag
from recsys_opt.ops.tt_prefix import tt_prefix_bag
from recsys_opt.ops.tt_settings import (
    TT_BOUNDS_CHECKS,
    BoundsReport,
    tt_allow_bf16,
    tt_allow_tf32,
    tt_bounds_check,
    tt_bounds_report,
    tt_direct_lookups,
    tt_limit_isa,
)
from recsys_opt.ops.tt_update import TT_ALGORITHMS, TTUpdate

__all__ = [
    "CUDA_LIBRARY",
    "DHE_ENCODINGS",
    "LIBRARY",
    "TT_ALGORITHMS",
    "TT_BOUNDS_CHECKS",
    "BoundsReport",
    "RowUpdate",
    "TTUpdate",
    "adagrad_",
    "dense_bag",
    "dense_bag_updating",
    "dhe_embedding_bag",
    "dhe_encode",
    "dot_interaction",
    "has_cuda_kernel",
    "hot_rows_bag",
    "hot_rows_count_",
    "hot_rows_directory_",
    "hot_rows_split",
    "rowwise_adagrad_rows_",
    "sgd_rows_",
    "tiered_ask_ahead",
    "tiered_bag",
    "tiered_bag_updating",
    "tt_allow_bf16",
    "tt_allow_tf32",
    "tt_bounds_check",
    "tt_bounds_report",
    "tt_direct_lookups",
    "tt_embedding_bag",
    "tt_limit_isa",
    "tt_prefix_bag",
]
