import pytest

from recsys_opt.bench.torchrec_exchange import measure, split_tables
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan

pytest.importorskip("torchrec")


@pytest.mark.slow
def test_a_plan_exchanges_what_whole_tables_do():
    cut = TablePlan("cut", 60, 8, (1, 0), (10, 30), row_shards=2, feature_names=("a", "b"))
    plan = Plan(
        (
            TablePlan("both", 50, 8, (0,), (5,)),
            TablePlan("hot", 20, 4, (1,), (20,)),
            TablePlan("wide", 30, 16, (1, 0), (7, 7), column_shards=2),
            cut,
            TablePlan("copy", 9, 4, (0, 1), (9, 9), replicated=True),
        ),
        2,
        12,
    )
    found = measure(plan, rounds=2)
    sent = {w["way"]: w["pooled_bytes"] for w in found["ways"]}
    number = 2 * 12 * 4  # of one column: there and back, every sample, fp32
    assert sent["whole tables"] == number * (8 + 4 + 16 + 2 * 8)
    assert sent["planned"] == number * (8 + 4 + 16 + 2 * 2 * 8)
    assert sent["two outputs"] == number * (2 * 8 + 4 + 2 * 16 + 2 * 3 * 8)  # one stripe is all hot
    assert found["remap_ms"] > 0
    assert all(w["p20_ms"] <= w["median_ms"] <= w["p80_ms"] for w in found["ways"])


def test_bad_input_is_named(capsys):
    with pytest.raises(InputError, match="the plan has 1 devices and 0 tables"):
        measure(Plan((), 1, 1), 2)
    with pytest.raises(InputError, match="batch_size = 7 is not divisible by 2 devices"):
        measure(split_tables([5], devices=2, embedding_dim=4, hot_share=0.5, batch_size=7), 2)
    assert main(["bench", "torchrec", "--rows", "0"]) == 2
    assert "rows = [0]" in capsys.readouterr().err
    assert main(["bench", "torchrec", "--rounds", "0"]) == 2
    assert "rounds = 0" in capsys.readouterr().err
