"""Requests as arrays: what is checked before a model sees them. Needs numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.errors import InputError
from recsys_opt.serving.profile import ServedModel

LARGEST_DENSE = 1e18
"""Beyond it a model's sums could overflow; Criteo's dense numbers are logarithms."""


def check_request(model: ServedModel, dense: NDArray[Any], ids: NDArray[Any]) -> int:
    """The number of samples of a request; raises InputError where it does not fit the model.

    dense  [B, dense_features] float32
    ids    [F, B] int32 or int64, feature-major: row f has the ids of features[f]
    """
    if dense.dtype != np.float32 or dense.ndim != 2 or dense.shape[1] != model.dense_features:
        raise InputError(
            f"dense is {dense.dtype} {list(dense.shape)}; it must be float32 [batch, {model.dense_features}]"
        )
    features = len(model.features)
    if ids.dtype not in (np.int32, np.int64) or ids.ndim != 2 or ids.shape[0] != features:
        raise InputError(
            f"ids is {ids.dtype} {list(ids.shape)}; it must be int32 or int64 [{features}, batch], the ids "
            "of a feature side by side"
        )
    batch = len(dense)
    if ids.shape[1] != batch:
        raise InputError(f"dense has {batch} samples, but ids has {ids.shape[1]}; they must be equally many")
    if batch == 0:
        raise InputError("the request has no samples; it must have at least one")
    # NaN fails the comparison, too.
    if not max(float(dense.max()), -float(dense.min())) <= LARGEST_DENSE:
        sample, column = (int(k) for k in np.argwhere(~(np.abs(dense) <= LARGEST_DENSE))[0])
        raise InputError(
            f"dense[{sample}, {column}] = {dense[sample, column]}; it must be a number of at most "
            f"{LARGEST_DENSE:g} in size"
        )
    rows = model.rows
    if ids.min() < 0 or (ids.max(axis=1) >= rows).any():
        feature, sample = (int(k) for k in np.argwhere((ids < 0) | (ids >= rows[:, None]))[0])
        raise InputError(
            f"ids[{feature}, {sample}] = {ids[feature, sample]} is outside the {rows[feature]:,} rows of "
            f"feature {model.features[feature]}; ids must be 0 .. {rows[feature] - 1}"
        )
    return batch
