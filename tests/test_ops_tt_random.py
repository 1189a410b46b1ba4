"""tt_embedding_bag over random configurations: every value and gradient, and every wrong id refused."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_opt import ops
from tests.tt_cases import Case, cases, check, running

many_examples = settings(deadline=None, suppress_health_check=list(HealthCheck))


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
