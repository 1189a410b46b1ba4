import json

import numpy as np
import pytest

from recsys_opt.bench.id_order import LAYOUTS, laid_out
from recsys_opt.cli.main import main
from recsys_opt.data.dataset import array_path
from recsys_opt.data.id_order import ORDERS
from tests.generated import make_dataset


@pytest.mark.parametrize("fastest", [0, 1])
def test_layouts_are_bijections_that_move_one_digit_first(fastest):
    p = (4, 3, 5)
    ids = laid_out(np.arange(60), p, fastest)
    assert sorted(ids) == list(range(60))
    digits = np.stack([ids // 15, ids // 5 % 3, ids % 5])
    assert list(digits[fastest][: p[fastest]]) == list(range(p[fastest]))
    assert (digits[2][: p[fastest]] == 0).all()
    assert digits[2][p[fastest]] == 1


def test_the_command_measures_every_order(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    random = np.random.default_rng(0)
    scattered = [random.permutation(c.num_embeddings) for c in data.info.sparse_columns]
    for part in ("a", "b"):
        path = array_path(data.path, part, "sparse")
        ids = np.load(path)
        np.save(path, np.stack([s[i] for s, i in zip(scattered, ids.T, strict=True)], 1).astype(np.int32))
    flags = ["--batch-size", "64", "800", "--tables", "2", "--rank", "4", "--rounds", "2"]
    record = tmp_path / "record.json"
    assert main(["bench", "order", str(data.path), *flags, "--record", str(record), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert json.loads(record.read_text())["rows"] == rows
    assert [(r["rows"], r["batch_size"]) for r in rows[::5]] == [
        ("train", 64),
        ("train", 800),
        ("later", 64),
        ("later", 800),
    ]
    for k in range(0, len(rows), 5):
        case = {r["order"]: r for r in rows[k : k + 5]}
        assert set(case) == {"as it is", *ORDERS, *LAYOUTS}
        assert len({r["distinct_ids"] for r in case.values()}) == 1
        for r in case.values():
            assert r["distinct_middle_indices"] <= r["distinct_prefixes"] <= r["distinct_ids"]
        assert case["frequency"]["distinct_prefixes"] < case["as it is"]["distinct_prefixes"]
    assert main(["bench", "order", str(data.path), "--batch-size", "9000"]) == 2
    assert "9000 is more than the 4800 training rows" in capsys.readouterr().err
