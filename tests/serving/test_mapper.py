import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.serving.bound import correct_bound
from recsys_opt.serving.mapper import Mapper
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.sizes import parse_sizes
from tests.serving.profiles import cpu_gpu_profile, make_profile

SIZES = parse_sizes("lognormal:mean=128")
MB = 10**6


def sized(profile, megabytes):
    """The profile with these bytes, path by path."""
    paths = tuple(replace(p, bytes=m * MB) for p, m in zip(profile.paths, megabytes, strict=True))
    return replace(profile, paths=paths)


KAGGLE = sized(cpu_gpu_profile(), (2160, 40, 2200, 2160, 40, 2200))


def best_of_all(mapper):
    """By enumeration of every set; of those that rounding tells apart the second value counts."""
    every = range(len(mapper.profile.paths))
    sets = (s for k in range(len(every) + 1) for s in itertools.combinations(every, k))
    found = [mapper.worth(s) for s in sets if mapper.fits(s)]
    most = max(first for first, _ in found)
    return most, max(second for first, second in found if first >= most * (1 - 1e-9))


def test_the_value_is_the_bound():
    """What a set is worth is what `correct_bound` says of a profile with these paths alone."""
    mapper = Mapper(KAGGLE, sizes=SIZES, sla=25e-3, rate=1200.0)
    for chosen in ([0], [1, 3], [0, 2, 4], list(range(6))):
        names = [KAGGLE.paths[p].name for p in chosen]
        bound = correct_bound(KAGGLE.with_paths(names), SIZES, 1200.0, 25e-3)
        assert mapper.worth(chosen)[0] == pytest.approx(bound.correct_per_s, rel=1e-6)


def test_everything_where_there_is_room():
    mapper = Mapper(KAGGLE, sizes=SIZES, sla=25e-3)
    assert mapper.memory == {"cpu": 4 << 30, "gpu": 4 << 30}
    found = mapper.result(mapper.chosen())
    assert found.value == pytest.approx(mapper.worth(range(6))[0], rel=1e-6)
    assert sum(found.shares.values()) == pytest.approx(1.0, abs=1e-6)
    assert sum(len(paths) for paths in found.paths.values()) <= 6


def test_little_memory():
    mapper = Mapper(KAGGLE, {"cpu": 3000 * MB, "gpu": 200 * MB}, sizes=SIZES, sla=25e-3, rate=5000.0)
    for choice in (mapper.mp_rec(), mapper.chosen(), mapper.exact()):
        found = mapper.result(choice)
        assert found.paths["gpu"] == ("dhe@gpu",)
        assert found.bytes["gpu"] == 40 * MB
        assert mapper.fits(choice)
    # Accuracy first leaves no room for the table, which the load would need.
    tight = Mapper(KAGGLE, {"cpu": 2230 * MB, "gpu": 0}, sizes=SIZES, sla=25e-3, rate=450.0)
    greedy, best = (tight.result(c) for c in (tight.mp_rec(), tight.exact()))
    assert greedy.paths == {"cpu": ("hybrid@cpu",), "gpu": ()}
    assert best.paths == {"cpu": ("table@cpu", "dhe@cpu"), "gpu": ()}
    assert best.value > 1.5 * greedy.value
    assert tight.result(tight.chosen()) == best


profiles = st.integers(1, 3).flatmap(
    lambda devices: st.lists(
        st.tuples(
            st.integers(0, devices - 1),
            st.floats(0.5, 0.9),
            st.floats(1e-5, 5e-3),
            st.floats(1e-7, 1e-4),
            st.integers(1, 50),
        ),
        min_size=1,
        max_size=8,
    )
)


@settings(max_examples=60)
@given(profiles, st.integers(1, 120), st.integers(1, 120), st.sampled_from([10e-3, 50e-3]), st.floats(0.1, 4))
def test_against_enumeration(drawn, first, second, sla, load):
    made = make_profile(
        {f"p{k}@d{d}": (accuracy, fixed, each) for k, (d, accuracy, fixed, each, _) in enumerate(drawn)},
        quantiles=4,
        sizes=(1, 128, 1024),
    )
    profile = sized(made, [m for *_, m in drawn])
    names = [d.name for d in profile.devices]
    memory = dict(zip(names, (first * MB, second * MB, 30 * MB), strict=False))
    try:
        mapper = Mapper(profile, memory, sizes=SIZES, sla=sla)
    except InfeasibleError:
        for path in profile.paths:
            fits = path.bytes <= memory[path.device]
            assert not fits or path.quantile(1, 0.0) > sla
        return
    mapper = Mapper(profile, memory, sizes=SIZES, sla=sla, rate=mapper.rate * load)
    best, exact, chosen = best_of_all(mapper), mapper.exact(), mapper.chosen()
    assert mapper.worth(exact) == (pytest.approx(best[0], rel=1e-7), pytest.approx(best[1], rel=1e-7))
    assert mapper.fits(exact)
    assert mapper.fits(chosen)
    assert mapper.worth(chosen)[0] <= best[0] * (1 + 1e-7)
    assert mapper.worth(chosen)[0] >= 0.9 * best[0]
    for p in exact:  # nothing idle is held
        without, whole = mapper.worth(exact - {p}), mapper.worth(exact)
        assert without[0] < whole[0] * (1 - 1e-9) or without[1] < whole[1]


def test_what_cannot_be_mapped():
    def mapper(profile: Profile, memory, **given):
        return Mapper(profile, memory, **{"sizes": SIZES, "sla": 25e-3, **given})

    with pytest.raises(InfeasibleError, match=r"no path fits .* nearest is dhe@cpu, which takes 40,000,000"):
        mapper(KAGGLE, {"cpu": 39 * MB, "gpu": MB})
    with pytest.raises(InfeasibleError, match=r"inside the SLA of 0\.01 ms"):
        mapper(KAGGLE, {}, sla=1e-5)
    with pytest.raises(InputError, match="no device 'tpu'; it has cpu, gpu"):
        mapper(KAGGLE, {"tpu": -1})
    with pytest.raises(InputError, match="memory of gpu = -1"):
        mapper(KAGGLE, {"gpu": -1})
    with pytest.raises(InputError, match="needs more than 0 branches"):
        mapper(KAGGLE, {"cpu": 2230 * MB, "gpu": 0}, rate=450.0).exact(most=0)
