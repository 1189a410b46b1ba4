import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.training.schedule import ScheduleConfig


def test_warm_up_flat_and_decay():
    schedule = ScheduleConfig(warmup=0.2, decay=0.5)
    factors = [schedule.factor(step, 10) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_quadratic_decay_and_what_is_left():
    schedule = ScheduleConfig(decay=1.0, decay_shape="quadratic", final_factor=0.1)
    assert [schedule.factor(s, 4) for s in range(4)] == pytest.approx(
        [1.0, 0.1 + 0.9 * 9 / 16, 0.1 + 0.9 / 4, 0.1 + 0.9 / 16]
    )


@given(warmup=st.floats(0, 0.5), decay=st.floats(0, 0.5), total=st.integers(1, 500), shape=st.booleans())
def test_every_factor_is_between_0_and_1_and_rises_then_falls(warmup, decay, total, shape):
    schedule = ScheduleConfig(warmup, decay, "quadratic" if shape else "linear")
    factors = [schedule.factor(step, total) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(
    "options",
    [{"warmup": -0.1}, {"decay": 1.5}, {"warmup": 0.6, "decay": 0.6}, {"decay_shape": "cosine"}],
)
def test_refusals(options):
    with pytest.raises(InputError, match=r"must be"):
        ScheduleConfig(**options)
