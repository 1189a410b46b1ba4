"""Queries and answers as JSON, for trying things out: the binary form is ten times faster.

{"dense": [[0.5, ...], ...],            B lists of D numbers
 "ids": {"C1": [7, ...], ...}           by feature, B ids each; or B lists of F ids
 "within_ms": 25, "model": "dlrm"}      both may be left out
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Answer, Query
from recsys_opt.serving.profile import ServedModel

CONTENT_TYPE = "application/json"
_KEYS = ("dense", "ids", "within_ms", "model")


def decode_query(body: bytes | bytearray | memoryview, model: ServedModel, *, max_samples: int) -> Query:
    """The query in a JSON text; raises RefusalError where it is none."""
    try:
        document: Any = json.loads(bytes(body).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RefusalError("bad_request", f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise RefusalError("bad_request", "the body is no JSON object; it must have dense and ids")
    for key in document:
        if key not in _KEYS:
            raise RefusalError(
                "bad_request", f"the query has no key {key[:100]!r}; its keys are {', '.join(_KEYS)}"
            )
    for key in ("dense", "ids"):
        if key not in document:
            raise RefusalError("bad_request", f"the query has no {key!r}")
    rows = document["dense"]
    if isinstance(rows, list) and len(rows) > max_samples:
        raise RefusalError(
            "too_large", f"the query has {len(rows):,} samples; at most {max_samples:,} are taken: split it"
        )
    dense = _numbers(rows, "dense", model.dense_features, float)
    within = document.get("within_ms")
    if within is not None and not (_is_number(within) and 0 < within < math.inf):
        raise RefusalError("bad_request", f"within_ms = {str(within)[:40]}; it must be a positive number")
    name = document.get("model", "")
    if not isinstance(name, str):
        raise RefusalError("bad_request", "model must be a text")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        numbers = dense.astype(np.float32)
    return Query(
        numbers,
        _ids(document["ids"], model, dense.shape[0]),
        None if within is None else min(within, 1e9) / 1000,
        name,
    )


def encode_answer(answer: Answer) -> bytes:
    """The JSON text of an answer."""
    # float32 in the fewest digits that say it
    document = {
        "probabilities": [float(str(p)) for p in answer.probabilities],
        "paths": dict(answer.paths),
        "wait_ms": round(1e3 * answer.wait_s, 4),
        "service_ms": round(1e3 * answer.service_s, 4),
        "model_ms": round(1e3 * answer.model_s, 4),
        "total_ms": round(1e3 * answer.total_s, 4),
        "batch": answer.batch,
        "batch_size": answer.batch_size,
    }
    return json.dumps(document, allow_nan=False).encode()


def _ids(given: Any, model: ServedModel, samples: int) -> NDArray[np.int64]:
    if isinstance(given, dict):
        for name in given:
            if name not in model.features:
                raise RefusalError("bad_request", f"ids has no feature {name[:100]!r} in the model")
        for name in model.features:
            if name not in given:
                raise RefusalError("bad_request", f"ids lacks the feature {name}")
        return _numbers([given[name] for name in model.features], "ids", samples, int, names=model.features)
    by_sample = _numbers(given, "ids", len(model.features), int)
    if by_sample.shape[0] != samples:
        raise RefusalError("bad_request", f"ids has {by_sample.shape[0]} samples, dense has {samples}")
    return np.ascontiguousarray(by_sample.T)


def _numbers(
    rows: Any, what: str, columns: int, kind: type[int] | type[float], names: tuple[str, ...] = ()
) -> NDArray[Any]:
    """A list of lists of numbers as an array; says which one is something else."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise RefusalError("bad_request", f"{what} must be a list of lists")
    for at, row in enumerate(rows):
        where = f"{what}[{names[at] if names else at}]"
        if len(row) != columns:
            raise RefusalError("bad_request", f"{where} has {len(row)} numbers; it must have {columns}")
        for k, value in enumerate(row):
            if not _is_number(value) or (kind is int and not isinstance(value, int)):
                wanted = "a whole number" if kind is int else "a number"
                raise RefusalError("bad_request", f"{where}[{k}] = {str(value)[:40]}; it must be {wanted}")
    try:
        array = np.array(rows, dtype=np.int64 if kind is int else np.float64)
    except OverflowError:
        raise RefusalError("bad_request", f"{what} holds a number of more than 64 bits") from None
    return array.reshape(len(rows), columns)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")
