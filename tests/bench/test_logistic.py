import math

import numpy as np
import pytest

from recsys_opt.bench import logistic
from recsys_opt.bench.logistic import fit_logistic
from recsys_opt.data.dataset import array_path
from tests.generated import make_dataset


def test_it_finds_what_there_is_to_find(tmp_path):
    data = make_dataset(tmp_path, rows=20_000, columns=(4, 60))
    found = fit_logistic(data, (1.0, 10.0))
    # The generator's own logit of these columns: nothing can do better, and the regression is of its form.
    dense = np.concatenate([np.load(array_path(tmp_path, p, "dense")) for p in "ab"])[18_000:]
    sparse = np.concatenate([np.load(array_path(tmp_path, p, "sparse")) for p in "ab"])[18_000:]
    labels = np.concatenate([np.load(array_path(tmp_path, p, "labels")) for p in "ab"])[18_000:, 0]
    logit = -1.5 + 0.4 * (dense[:, 0] - dense[:, 1])
    for c, n in enumerate((4, 60)):
        logit += np.random.default_rng(100 + c).normal(0, 0.8, n)[sparse[:, c]]
    best = float(np.mean(np.logaddexp(0, logit) - logit * labels))
    assert found.test.logloss == pytest.approx(best, abs=0.004)
    assert found.test.rows == 2000
    assert dict(found.searched)[found.l2] == found.validation.auc == max(auc for _, auc in found.searched)


def test_the_minimum_is_one(tmp_path, monkeypatch):
    data = make_dataset(tmp_path, rows=2000, columns=(4, 30))
    once = fit_logistic(data, (2.0,))
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 400)
    longer = fit_logistic(data, (2.0,))
    assert longer.validation.logloss == pytest.approx(once.validation.logloss, abs=1e-5)


def test_ids_unseen_in_training_say_nothing(tmp_path):
    data = make_dataset(tmp_path, rows=3000, columns=(4,))
    sparse = np.load(array_path(tmp_path, "b", "sparse"))
    heavy = fit_logistic(data, (1e9,))  # every weight of an id is 0
    sparse[-300:] = 3_999
    info = (tmp_path / "dataset.json").read_text().replace('"num_embeddings": 4', '"num_embeddings": 4000')
    (tmp_path / "dataset.json").write_text(info)
    np.save(array_path(tmp_path, "b", "sparse"), sparse)
    unseen = fit_logistic(type(data)(tmp_path), (1e9,))
    assert unseen.test.logloss == pytest.approx(heavy.test.logloss, abs=1e-4)
    assert math.isfinite(unseen.test.logloss)
