import importlib
import sys

import pytest

from recsys_opt import TableConfig
from recsys_opt.cli.main import main
from recsys_opt.embeddings.collection import EmbeddingCollection
from recsys_opt.errors import InputError
from tests.generated import make_dataset


@pytest.fixture
def without(monkeypatch):
    """Makes a package look absent."""

    def hide(package: str, adapter: str) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == package]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, adapter, raising=False)

    return hide


def test_without_fbgemm_its_tables_say_what_to_do(without):
    without("fbgemm_gpu", "recsys_opt.integrations.fbgemm")
    with pytest.raises(
        InputError, match=r"needs the package fbgemm-gpu-cpu.*run scripts/setup.sh, or choose 'dense'"
    ):
        EmbeddingCollection([TableConfig("t", 5, 4, representation="fbgemm")])


def test_training_without_fbgemm_exits_with_2_and_leaves_the_folder_free(without, tmp_path, capsys):
    without("fbgemm_gpu", "recsys_opt.integrations.fbgemm")
    data = make_dataset(tmp_path / "data", rows=200)
    command = ["train", str(data.path), "--out", str(tmp_path / "run"), "--max-rows", "100"]
    assert main([*command, "--dense-representation", "fbgemm"]) == 2
    message = capsys.readouterr().err
    assert "needs the package fbgemm-gpu-cpu" in message
    assert "run scripts/setup.sh, or choose 'dense'" in message
    assert main([*command, "--dense-representation", "dense"]) == 0


def test_without_torchrec_its_adapter_says_what_to_do(without):
    without("torchrec", "recsys_opt.integrations.torchrec")
    with pytest.raises(InputError, match=r"needs the package torchrec.*run scripts/setup.sh"):
        importlib.import_module("recsys_opt.integrations.torchrec")
