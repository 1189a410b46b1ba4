import pytest

from recsys_opt.data.access import count_access
from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.embeddings.tt_budget import choose_tables
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.models.recipes import DLRMConfig, table_configs
from recsys_opt.run_folder import RunFolder
from recsys_opt.tensor_files import read_metadata, read_tensors, write_tensors
from recsys_opt.training.budget import with_chosen_tables
from recsys_opt.training.config import CompressionConfig, TrainingConfig, replaced
from recsys_opt.training.trainer import train
from tests.generated import make_dataset

CONFIG = replaced(
    TrainingConfig(architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1), dense_features=3)),
    {"batch_size": 100, "max_rows": 1000, "compression.memory_budget": 20_000},
)


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "data")


def test_a_run_has_the_chosen_tables_and_goes_on_with_them(data, tmp_path, monkeypatch):
    result = train(CONFIG, data.path, tmp_path / "run")
    config = TrainingConfig.from_json(RunFolder(tmp_path / "run").description()["config"])
    assert config.compression.memory_budget == 20_000
    assert 0 < result.embedding_bytes <= 20_000
    _, choice = with_chosen_tables(CONFIG, data)
    assert choice.bytes == result.embedding_bytes
    assert choice.tt_options() == config.compression.tt_options != {}
    # The run's own configuration needs no counting again.
    monkeypatch.setattr("recsys_opt.training.budget.count_access", lambda *a, **k: pytest.fail("counted"))
    again = train(config, data.path, tmp_path / "run", resume=True)
    assert again.test == result.test
    # Nor does the configuration that it was started with.
    again = train(CONFIG, data.path, tmp_path / "run", resume=True)
    assert again.test == result.test
    with pytest.raises(InputError, match="memory_budget: 20000 -> 30000"):
        train(
            replaced(CONFIG, {"compression.memory_budget": 30_000}), data.path, tmp_path / "run", resume=True
        )


def test_a_budget_for_which_all_tables_stay_dense_is_not_counted_again(data, tmp_path, monkeypatch):
    config = replaced(CONFIG, {"compression.memory_budget": 10_000_000})
    result = train(config, data.path, tmp_path / "run")
    assert result.embedding_bytes == result.dense_embedding_bytes
    monkeypatch.setattr("recsys_opt.training.budget.count_access", lambda *a, **k: pytest.fail("counted"))
    assert train(config, data.path, tmp_path / "run", resume=True).test == result.test


def test_resuming_with_another_budget_is_refused(data, tmp_path):
    train(CONFIG, data.path, tmp_path / "run")
    config = TrainingConfig.from_json(RunFolder(tmp_path / "run").description()["config"])
    other = replaced(config, {"compression.memory_budget": 30_000})
    with pytest.raises(InputError, match="memory_budget: 20000 -> 30000"):
        train(other, data.path, tmp_path / "run", resume=True)


def test_the_choice_rests_on_the_rows_that_are_trained_on(data):
    _, choice = with_chosen_tables(CONFIG, data)
    assert {t.lookups for t in choice.tables} == {1000}
    tables = table_configs(data.info.sparse_columns, 8)
    direct = choose_tables(tables, count_access(data, max_rows=1000), 20_000)
    assert choice.tt_options() == direct.tt_options()


@pytest.mark.parametrize(("algorithm", "per_parameter", "per_row"), [("sgd", 0, 0), ("adagrad", 4, 4)])
def test_optimizer_bytes_are_those_of_the_optimizer(data, algorithm, per_parameter, per_row):
    from recsys_opt.training.initial import initial_model
    from recsys_opt.training.optimizers import ModelOptimizer

    config, choice = with_chosen_tables(replaced(CONFIG, {"optimizer.algorithm": algorithm}), data)
    model = initial_model(config, data, "cpu")
    state = ModelOptimizer(model, config.optimizer).state_dict()
    tables = {name: s for name, s in state.items() if name.startswith("embeddings.")}
    assert choice.optimizer_bytes == sum(s.numel() * s.element_size() for s in tables.values())
    assert (choice.optimizer_bytes > 0) == (per_parameter + per_row > 0)


def test_without_a_budget_nothing_changes(data):
    config = replaced(CONFIG, {"compression.memory_budget": None})
    assert with_chosen_tables(config, data) == (config, None)


def test_refusals(data):
    with pytest.raises(InfeasibleError, match="memory_budget = 90 bytes is too small"):
        with_chosen_tables(replaced(CONFIG, {"compression.memory_budget": 90}), data)
    for clash in ({"tt_threshold": 5}, {"tt_tables": ("C1",)}, {"tt_rank": 8}):
        with pytest.raises(InputError, match="leave out tt_threshold, tt_tables and tt_rank"):
            CompressionConfig(memory_budget=10_000, **clash)
    with pytest.raises(InputError, match="at least 1 byte"):
        CompressionConfig(memory_budget=0)


def test_tables_of_a_trained_run_are_judged_by_their_spectra(data, tmp_path):
    """A table of rank 2 needs little more (its last rows are cut off), however often it is looked up."""
    dense = replaced(CONFIG, {"compression.memory_budget": None})
    train(dense, data.path, tmp_path / "dense")
    file = RunFolder(tmp_path / "dense").checkpoint_folder() / "model.safetensors"
    tensors = {n: t.clone() for n, t in read_tensors(file).items()}  # off the file, which is written anew
    (name,) = [n for n in tensors if "C4" in n and n.endswith("weight")]
    bag = TTEmbeddingBag(5000, 8, 2)
    bag.reset_parameters(0.1)
    tensors[name] = bag.materialize().detach()
    write_tensors(file, tensors, metadata=read_metadata(file))
    config = replaced(CONFIG, {"init_from": str(tmp_path / "dense"), "compression.memory_budget": 60_000})
    _, by_spectra = with_chosen_tables(config, data)
    _, by_lookups = with_chosen_tables(replaced(config, {"init_from": None}), data)
    c4 = by_spectra.tables[3]
    assert c4.loss < 1e-6 < by_lookups.tables[3].loss
    assert 2 <= max(c4.config.options["tt_ranks"]) <= 4
    fitted = train(replaced(config, {"max_rows": 100}), data.path, tmp_path / "tt")
    assert fitted.embedding_bytes == by_spectra.bytes <= 60_000
