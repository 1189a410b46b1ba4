"""CachedTTEmbeddingBag against a dictionary of rows, under churn; its options, state and place in torch."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import embedding_bag

from recsys_opt import CachedTTEmbeddingBag, TableConfig
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.errors import InputError
from recsys_opt.reference import tt_rows

ROWS, DIM = 60, 8


def make_bag(cache_rows: int = 6, rows: int = ROWS, **options) -> CachedTTEmbeddingBag:
    torch.manual_seed(0)
    options = {"refresh_every": None, "hysteresis": 0.1, **options}
    bag = CachedTTEmbeddingBag(rows, DIM, 4, cache_rows=cache_rows, dtype=torch.float64, **options)
    bag.tt.reset_parameters(1.0)
    return bag


class Dictionary:
    """What the bag should hold: a dictionary of rows by id, and a tensor train for the other ids."""

    def __init__(self, bag: CachedTTEmbeddingBag) -> None:
        self.bag = bag
        self.rows: dict[int, torch.Tensor] = {}
        self.cores = [core.detach().clone() for core in bag.tt.cores]

    def table(self) -> torch.Tensor:
        table = tt_rows(torch.arange(self.bag.num_embeddings), self.cores)
        for id_, row in self.rows.items():
            table[id_] = row
        return table

    def train(self, ids: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor | None, lr: float):
        """SGD on the sum of the pooled rows' sines, by autograd over the whole table."""
        cores = [core.clone().requires_grad_() for core in self.cores]
        held = {id_: row.clone().requires_grad_() for id_, row in self.rows.items()}
        table = tt_rows(torch.arange(self.bag.num_embeddings), cores)
        for id_, row in held.items():
            table = table.index_copy(0, torch.tensor([id_]), row[None])
        pooled = embedding_bag(
            ids,
            table,
            offsets,
            mode=self.bag.mode,
            padding_idx=self.bag.padding_idx,
            per_sample_weights=factors,
        )
        leaves = [*cores, *held.values()]
        grads = torch.autograd.grad(pooled.sin().sum(), leaves, materialize_grads=True)
        stepped = [leaf.detach() - lr * grad for leaf, grad in zip(leaves, grads, strict=True)]
        self.cores, self.rows = stepped[: len(cores)], dict(zip(held, stepped[len(cores) :], strict=True))
        return pooled.detach()

    def refresh(self) -> None:
        """Refreshes the bag and checks what it did with each row."""
        bag, before = self.bag, self.table()
        kept_cores = [core.detach().clone() for core in bag.tt.cores]
        counts = dict(zip(bag.hot.keys.tolist(), bag.hot.hot_counts.tolist(), strict=True))
        report = bag.refresh()
        held = [k for k in bag.hot.keys.tolist() if k >= 0]
        assert len(held) == len(set(held)) == report.held <= bag.hot.weight.shape[0]
        evicted = sorted(set(self.rows) - set(held))
        assert len(evicted) == report.evicted
        assert len(set(held) - set(self.rows)) == report.populated == len(report.slots)
        self.rows = {id_: before[id_] for id_ in held}  # what stays and what comes in does not move
        cores = [core.detach().clone() for core in bag.tt.cores]
        if not evicted:
            assert all(torch.equal(a, b) for a, b in zip(cores, kept_cores, strict=True))
        else:
            old, new = (tt_rows(torch.arange(bag.num_embeddings), c) for c in (kept_cores, cores))
            wanted = before[evicted]
            assert report.error_before == pytest.approx(float((wanted - old[evicted]).norm() / wanted.norm()))
            assert report.error_after == pytest.approx(float((wanted - new[evicted]).norm() / wanted.norm()))
            weights = torch.tensor([max(counts[k], 1) for k in evicted]).sqrt()[:, None]
            loss = [float((weights * (wanted - table[evicted])).norm()) for table in (old, new)]
            assert loss[1] <= loss[0] * (1 + 1e-6)
            every = torch.arange(int(torch.tensor(bag.tt.tt_p_shapes).prod()))
            old, new = (tt_rows(every, c) for c in (kept_cores, cores))
            moved = float((new - old).norm() / old.norm())
            assert report.others_moved == pytest.approx(moved, rel=1e-3, abs=1e-12)
            assert moved <= bag.write_back_limit * (1 + 1e-3) + 1e-12
        self.cores = cores


def draw_batch(seed: int, hot: int, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeats, empty bags; mostly of a few ids that depend on `hot`."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (6,), generator=g)
    n = int(lengths.sum())
    near = (7 * hot + torch.randint(0, 5, (n,), generator=g)) % rows
    far = torch.randint(0, rows, (n,), generator=g)
    ids = torch.where(torch.rand(n, generator=g) < 0.8, near, far)
    return ids, torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]])


steps = st.lists(
    st.tuples(
        st.sampled_from(["train", "train", "train", "look", "refresh", "save and load", "checkpoint"]),
        st.integers(0, 10**6),
        st.integers(0, 3),
    ),
    min_size=3,
    max_size=16,
)


@settings(max_examples=80)
@given(
    program=steps,
    cache_rows=st.sampled_from([1, 2, 6, 20, ROWS, 100]),
    mode=st.sampled_from(["sum", "mean"]),
    padding_idx=st.sampled_from([None, 1]),
    weighted=st.booleans(),
    limit=st.sampled_from([0.0, 0.01, 1.0]),
    sketch=st.booleans(),
)
def test_equals_a_dictionary_of_rows_under_churn(
    program, cache_rows, mode, padding_idx, weighted, limit, sketch
):
    rows = 5000 if sketch else ROWS  # beyond 2 x 1024 rows a sketch counts
    bag = make_bag(cache_rows, rows, mode=mode, padding_idx=padding_idx, write_back_limit=limit)
    assert bag.hot.is_exact != sketch
    model, parameters = Dictionary(bag), list(bag.parameters())
    for action, seed, hot in program:
        ids, offsets = draw_batch(seed, hot, rows)
        factors = torch.linspace(-1, 1, len(ids), dtype=torch.float64) if weighted else None
        factors = factors if mode == "sum" else None
        if action == "train":
            want = model.train(ids, offsets, factors, lr=0.05)
            got = bag(ids, offsets, factors)
            for p in parameters:
                p.grad = None
            got.sin().sum().backward()
            torch.optim.SGD(parameters, lr=0.05).step()
            torch.testing.assert_close(got.detach(), want)
        elif action == "refresh":
            model.refresh()
        elif action == "save and load":
            file = io.BytesIO()
            torch.save(bag.state_dict(), file)
            file.seek(0)
            other = make_bag(cache_rows, rows, mode=mode, padding_idx=padding_idx, write_back_limit=limit)
            other.load_state_dict(torch.load(file))
            model.bag = bag = other
            parameters = list(bag.parameters())
        elif action == "checkpoint":
            model.bag = bag = copy.deepcopy(bag)
            parameters = list(bag.parameters())
        else:
            bag.eval()
            before = copy.deepcopy(bag.state_dict())
            bag(ids, offsets, factors)
            assert all(torch.equal(before[k], v) for k, v in bag.state_dict().items())
            bag.train()
        torch.testing.assert_close(bag.materialize(), model.table())
        # Equal so far: from here on rounding starts anew, for training may amplify it.
        model.cores = [core.detach().clone() for core in bag.tt.cores]
        every = torch.arange(rows)
        bag.eval()
        if padding_idx is None:
            torch.testing.assert_close(bag(every[:, None]).detach(), model.table())
        bag.train()
        assert set(bag.hot.keys[bag.hot.keys >= 0].tolist()) == set(model.rows)
        assert padding_idx not in model.rows


def test_frequent_rows_are_held_and_give_way_only_to_clearly_more_frequent_ones():
    bag = make_bag(3, hysteresis=0.5, decay=1.0)

    def look_up(**times: int) -> list[int]:
        bag(torch.tensor([[int(id_[1:]) for id_, n in times.items() for _ in range(n)]]))
        bag.refresh()
        return bag.hot.keys.tolist()

    assert look_up(i5=90, i6=80, i7=40, i8=30, i9=1) == [5, 6, 7]
    assert bag.hot.hot_counts.tolist() == [90, 80, 40]
    assert look_up(i8=30) == [5, 6, 7]  # 60 against 40: no more than half as many again
    assert look_up(i8=1) == [5, 6, 8]
    assert bag.hot.hot_counts.tolist() == [90, 80, 61]
    assert look_up(i7=50) == [5, 6, 8]  # it went on with its 40


def test_chance_moves_no_rows():
    bag = make_bag(20, rows=1000, hysteresis=0.0)
    g = torch.Generator().manual_seed(0)
    evicted = []
    for _ in range(10):
        bag(torch.randint(0, 1000, (5000, 1), generator=g))
        evicted.append(bag.refresh().evicted)
    assert sum(evicted) < 20  # all are equally frequent, and there are 980 rivals of 20 rows each time


def test_refreshes_by_itself_every_so_many_training_passes():
    bag, ids = make_bag(refresh_every=3), torch.tensor([[4, 4, 5, 5]])
    for _ in range(3):
        bag(ids)
        assert bag.last_refresh is None
    bag.eval()
    bag(ids)
    assert bag.last_refresh is None
    bag.train()
    bag(ids)
    assert bag.last_refresh.populated == 2
    assert bag.hot.clock[0] == 1


@pytest.mark.parametrize("refresh_at", [3, 4])
def test_a_resumed_run_goes_on_bit_for_bit(refresh_at):
    def run(bag, first, last):
        for step in range(first, last):
            ids, offsets = draw_batch(step, step // 5)
            bag.zero_grad()
            bag(ids, offsets).sin().sum().backward()
            torch.optim.SGD(bag.parameters(), lr=0.05).step()

    whole, half = make_bag(refresh_every=refresh_at), make_bag(refresh_every=refresh_at)
    run(whole, 0, 20)
    run(half, 0, 10)
    resumed = make_bag(refresh_every=refresh_at)
    # As a checkpoint does it: into the tensors of the state dict.
    state = resumed.state_dict()
    for name, tensor in half.state_dict().items():
        state[name].copy_(tensor)
    run(resumed, 10, 20)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_group_is_its_bags_side_by_side():
    a, b = make_bag(mode="mean", padding_idx=2), make_bag(9, rows=90)
    for bag in (a, b):
        bag(torch.randint(0, 9, (50, 1)))
        bag.refresh()
        with torch.no_grad():
            bag.hot.weight.add_(1.0)
    lengths = torch.randint(0, 4, (12,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.randint(0, 60, (int(offsets[-1]),), dtype=torch.int32)
    got = CachedTTEmbeddingBag.forward_group([a, b, a], ids, offsets)
    pieces = []
    for t, bag in enumerate((a, b, a)):
        bounds = offsets[4 * t : 4 * t + 5]
        pieces.append(bag(ids[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]))
    torch.testing.assert_close(got, torch.cat(pieces, 1))
    got.sum().backward()
    assert a.hot.weight.grad.is_sparse
    assert all(p.grad is not None for p in [*a.parameters(), *b.parameters()])


def test_untrained_rows_leave_the_cores_as_they_were():
    bag = make_bag(1, hysteresis=0.0)
    for id_ in range(5):
        bag(torch.full((1, 9 * 4**id_), id_))
        before = [core.detach().clone() for core in bag.tt.cores]
        report = bag.refresh()
        assert (report.evicted, report.error_before) == (min(id_, 1), pytest.approx(0, abs=1e-12))
        torch.testing.assert_close([c.detach() for c in bag.tt.cores], before)


def test_per_sample_weights_have_gradients_from_hot_and_cold_rows():
    bag = make_bag()
    bag(torch.tensor([[1, 1, 2, 2]]))
    bag.refresh()
    ids, offsets = torch.tensor([1, 40, 2, 2, 41]), torch.tensor([0, 2, 2])
    factors = torch.rand(5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, DIM, dtype=torch.float64)
    want = embedding_bag(ids, bag.materialize().detach(), offsets, mode="sum", per_sample_weights=factors)
    (wanted,) = torch.autograd.grad(want, factors, upstream)
    (got,) = torch.autograd.grad(bag(ids, offsets, factors), factors, upstream)
    torch.testing.assert_close(got, wanted)


def test_bad_options_are_named():
    for options, message in [
        ({"cache_rows": 0}, "cache_rows = 0"),
        ({"refresh_every": 0}, "refresh_every = 0"),
        ({"decay": 1.5}, "decay = 1.5"),
        ({"hysteresis": -1.0}, "hysteresis = -1.0"),
        ({"write_back_limit": float("nan")}, "write_back_limit = nan"),
        ({"mode": "max"}, "mode = 'max'"),
        ({"padding_idx": 60}, "padding_idx = 60"),
    ]:
        with pytest.raises(InputError, match=message):
            CachedTTEmbeddingBag(ROWS, DIM, 4, **{"cache_rows": 5, **options})
    with pytest.raises(InputError, match="tt_cached needs the option cache_rows"):
        build_embedding(TableConfig("t", ROWS, DIM, representation="tt_cached", options={"tt_ranks": 4}))


@pytest.mark.slow
def test_compiles_whole_and_counts_there():
    bag = make_bag(mode="mean")
    bag(torch.tensor([[1, 1, 2, 2]]))
    bag.refresh()
    twin = copy.deepcopy(bag)
    compiled = torch.compile(bag, fullgraph=True)
    ids, offsets = torch.randint(0, 9, (20,)), torch.arange(0, 20, 2)
    got, want = compiled(ids, offsets), twin(ids, offsets)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for (name, p), q in zip(bag.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad.to_dense(), q.grad.to_dense(), msg=name)
    assert torch.equal(bag.hot.hot_counts, twin.hot.hot_counts)
    assert torch.equal(bag.hot.counts, twin.hot.counts)
