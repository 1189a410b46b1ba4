"""Fixtures that every test may use."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from recsys_opt.cli.main import let_threads_sleep

let_threads_sleep()

import torch  # noqa: E402  its OpenMP reads the environment once

# Shared machines are slow at times. Each run tries new examples; --hypothesis-profile ci repeats the same.
settings.register_profile("recsys_opt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recsys_opt")

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "criteo"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def compiled_alone() -> Iterator[None]:
    """torch.compile counts a function's graphs in all tests of the process, and refuses the ninth."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def criteo_sample() -> Path:
    """137,139 real Kaggle rows; they may not be redistributed, so they lie outside the repository."""
    path = SHARED_DATA / "kaggle_sample.tsv.gz"
    if not path.exists():
        pytest.skip(
            f"the real Criteo sample is not here ({path}); the generated-data tests cover the same code"
        )
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny operations on a busy machine spend their time waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
