"""Stored rows of frequent ids beside a deep hash embedding, and the approximate tier."""

import pytest
import torch
from torch.nn import functional as F

from recsys_opt.embeddings.dhe import DHEEmbeddingBag
from recsys_opt.embeddings.dhe_cache import CachedDHEBag, CentroidBag, decoded, most_frequent, tier_report
from recsys_opt.embeddings.hybrid import HybridEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.tables import TableConfig

ROWS, DIM = 60, 8
IDS = torch.tensor([0, 59, 3, 3, 17, 59, 0, 5])
OFFSETS = torch.tensor([0, 0, 3, 3, 4, 8])
HOT = torch.tensor([59, 3, 8])


def make(**options):
    torch.manual_seed(0)
    return DHEEmbeddingBag(ROWS, DIM, **{"hashes": 32, "widths": (12,), "dtype": torch.float64, **options})


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3, 5])
@pytest.mark.parametrize("hot", [HOT, HOT[:0], torch.arange(ROWS)])
def test_the_exact_tier_changes_nothing(mode, padding_idx, hot):
    dhe = make(mode=mode, padding_idx=padding_idx)
    bag = CachedDHEBag.of(dhe, hot)
    torch.testing.assert_close(bag(IDS, OFFSETS), dhe(IDS, OFFSETS))
    torch.testing.assert_close(bag.materialize(), dhe.materialize())
    if mode == "sum":
        weights = torch.linspace(-1, 2, 8, dtype=torch.float64)
        torch.testing.assert_close(bag(IDS, OFFSETS, weights), dhe(IDS, OFFSETS, weights))
    assert not any(p.requires_grad for p in bag.parameters())
    own = sum(t.numel() * t.element_size() for t in (*bag.parameters(), *bag.buffers()))
    assert bag.storage_bytes() == own


def test_stored_rows_are_used():
    dhe = make()
    bag = CachedDHEBag.of(dhe, HOT)
    with torch.no_grad():
        bag.weight[1] = 7.0
    got = bag(IDS, torch.arange(8))
    assert torch.equal((got == 7.0).all(1), IDS == 3)
    assert bag.hot_share(IDS) == 4 / 8
    report = tier_report(bag, dhe, IDS)
    assert (report.exact_share, report.approximate_share, report.computed_share) == (0.5, 0.0, 0.5)
    assert (report.rms_error, report.max_error) == (0.0, 0.0)


def test_groups_of_both_tiers():
    torch.manual_seed(1)
    first, second = make(), make(mode="mean")
    bags = [CachedDHEBag.of(first, HOT), CachedDHEBag.of(second, HOT[:1], centroids=4)]
    offsets = torch.cat([OFFSETS, OFFSETS + 8, torch.tensor([16])])
    got = CachedDHEBag.forward_group(bags, torch.cat([IDS, IDS]), offsets)
    want = [first(IDS, OFFSETS), F.embedding_bag(IDS, bags[1].materialize(), OFFSETS, mode="mean")]
    torch.testing.assert_close(got, torch.cat(want, dim=1))


def test_centroids():
    """One a point is exact; one alone answers everything with the row of the mean encoding."""
    dhe = make()
    ids = torch.arange(ROWS)
    exact = CentroidBag.of(dhe, ROWS, ids)
    torch.testing.assert_close(exact.materialize(), dhe.materialize())
    torch.testing.assert_close(exact(IDS, OFFSETS), dhe(IDS, OFFSETS))
    one = CachedDHEBag.of(dhe, HOT, centroids=1, cold_ids=ids)
    rows = one.materialize()
    cold = torch.tensor([i for i in range(ROWS) if i not in HOT.tolist()])
    assert torch.equal(rows[cold], rows[cold[:1]].expand(len(cold), DIM))
    torch.testing.assert_close(rows[HOT], dhe.materialize()[HOT])
    report = tier_report(one, dhe, IDS)
    assert report.approximate_share == 0.5
    assert report.rms_error > 0.3
    assert report.max_error > 0.3
    default = CachedDHEBag.of(dhe, HOT, centroids=2)
    assert default.cold.centroids.shape == (2, 32)
    assert default.flops_per_lookup() == 2 * 2 * 32


def test_decoded_is_the_network():
    dhe = make(encoding="gaussian")
    bag = CentroidBag.of(dhe, 5, torch.arange(5))
    torch.testing.assert_close(decoded(dhe, bag.centroids), bag.rows_of)


def test_most_frequent():
    assert most_frequent(torch.tensor([4, 4, 7, 7, 7, 9, 1, 1]), 2).tolist() == [7, 1]
    assert most_frequent(torch.tensor([4, 5]), 9).tolist() == []


def test_a_cached_part_of_a_hybrid():
    torch.manual_seed(0)
    hybrid = HybridEmbeddingBag(ROWS, DIM, hashes=16, widths=(8,))
    frozen = hybrid.freeze(max_bytes=0)
    bag = HybridEmbeddingBag.of_parts(frozen.table, CachedDHEBag.of(frozen.dhe, HOT))
    torch.testing.assert_close(bag.freeze()(IDS, OFFSETS), hybrid(IDS, OFFSETS))


def test_refusals():
    with pytest.raises(InputError, match="has an id twice"):
        CachedDHEBag.of(make(), torch.tensor([3, 3]))
    with pytest.raises(InputError, match="count = 9 centroids of 4 ids"):
        CentroidBag.of(make(), 9, torch.arange(4))
    with pytest.raises(InputError, match="t: a CachedDHEBag is made from a DHEEmbeddingBag"):
        CachedDHEBag.from_config(TableConfig("t", 5, 4))
