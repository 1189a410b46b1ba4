"""tt_embedding_bag over random configurations: every value and gradient, and every wrong id refused."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_opt import ops
from tests.tt_cases import Case, cases, check, running

many_examples = settings(suppress_health_check=list(HealthCheck))


def check_refusal(case: Case, position: int, wrong: int) -> None:
    """An id outside its table is refused with its place, its value and the limit."""
    covered = int(case.offsets[-1])
    if not covered:
        return
    position %= covered
    tables = len(case.options["cores_per_table"])
    ends = case.offsets[:: max((len(case.offsets) - 1) // tables, 1)][1:]
    table = int((ends <= position).sum())
    rows = case.options["num_embeddings"][table]
    value = (-1, rows, rows + 1, torch.iinfo(case.indices.dtype).max, torch.iinfo(case.indices.dtype).min)[
        wrong
    ]
    if 0 <= value < rows or value > torch.iinfo(case.indices.dtype).max:
        return
    indices = case.indices.clone()
    indices[position] = value
    message = f"indices[{position}] = {value} is outside the table's {rows} rows (table {table})"
    case.indices = indices
    with running(case), torch.no_grad(), pytest.raises(RuntimeError, match=re.escape(message)):
        case.call(ops.tt_embedding_bag)


def used_slices(case: Case) -> list[torch.Tensor]:
    """For every core, which slices the covered ids that are not padding look up."""
    used, first, batch = [], 0, (len(case.offsets) - 1) // len(case.options["cores_per_table"])
    for t, d in enumerate(case.options["cores_per_table"]):
        ids = case.indices[case.offsets[t * batch] : case.offsets[(t + 1) * batch]].long()
        ids = ids[ids != case.options["padding_idx"][t]]
        masks = []
        for core in reversed(case.cores[first : first + d]):
            masks.insert(
                0, torch.zeros(core.shape[0], dtype=torch.bool).index_fill_(0, ids % core.shape[0], True)
            )
            ids = ids // core.shape[0]
        used += masks
        first += d
    return used


@settings(many_examples, max_examples=60)
@given(cases())
def test_what_is_not_looked_up_is_not_read_and_gets_no_gradient(case: Case):
    masks = used_slices(case)
    with torch.no_grad():
        for core, used in zip(case.cores, masks, strict=True):
            core[~used] = torch.nan
    check(case)
    with running(case):
        grads = case.results(ops.tt_embedding_bag)[1 : 1 + len(case.cores)]
    assert all(not grad[~used].any() for grad, used in zip(grads, masks, strict=True))


@settings(many_examples, max_examples=200)
@given(cases(), st.integers(0, 2**20), st.integers(0, 4))
def test_values_gradients_and_refusals(case: Case, position: int, wrong: int):
    check(case)
    check_refusal(case, position, wrong)


@pytest.mark.slow
@settings(many_examples, max_examples=2000)
@given(cases(), st.integers(0, 2**20), st.integers(0, 4))
def test_values_gradients_and_refusals_in_2000_configurations(case: Case, position: int, wrong: int):
    check(case)
    check_refusal(case, position, wrong)


@pytest.mark.slow
@settings(many_examples, max_examples=40)
@given(cases(tables=1, batches=(600, 1500, 9000), most_rank=12))
def test_values_and_gradients_of_batches_of_many_chunks(case: Case):
    check(case)
