import json
import math

import numpy as np
import pytest

from recsys_opt.errors import InputError
from recsys_opt.serving.trace import State, Trace, read_trace, write_trace


def example() -> Trace:
    return Trace(
        arrival=np.array([0.5, 0.0, 1.0]),
        size=np.array([3, 2, 9]),
        state=np.array([State.DROPPED, State.ANSWERED, State.ANSWERED]),
        latency=np.array([math.nan, 0.25, 0.5]),
        path=np.array([-1, 1, 0]),
        service=np.array([math.nan, 0.125, 0.25]),
        paths=("table@cpu", "dhe@gpu"),
        sla=0.3,
        circumstances={"cpu": "some"},
    )


@pytest.mark.parametrize("name", ["t.npz", "t.jsonl"])
def test_what_is_written_is_read(tmp_path, name):
    write_trace(tmp_path / name, example())
    found = read_trace(tmp_path / name)
    assert found.arrival.tolist() == [0.0, 0.5, 1.0]  # in the order of arrival
    assert found.size.tolist() == [2, 3, 9]
    assert found.answered.tolist() == [True, False, True]
    assert found.path.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(found.service, [0.125, math.nan, 0.25])
    assert np.isnan(found.wait).all()
    assert found.batch.tolist() == [-1, -1, -1]
    assert (found.paths, found.sla, found.circumstances) == (
        ("table@cpu", "dhe@gpu"),
        0.3,
        {"cpu": "some"},
    )


def test_both_forms_of_no_queries(tmp_path):
    nothing = Trace(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    for name in ("t.npz", "t.jsonl"):
        write_trace(tmp_path / name, nothing)
        assert len(read_trace(tmp_path / name)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [1, 2.5, 2]}, r"size\[1\] = 2.5; it must be a whole number"),
        ({"size": [1, 0, 2]}, r"size\[1\] = 0; it must be at least 1 sample"),
        ({"arrival": [0.0, math.inf, 1.0]}, r"arrival\[1\] = inf"),
        ({"latency": [0.1, math.nan, 0.1]}, r"latency\[1\] = nan; it must be 0 s or more"),
        ({"state": [0, 0, 4]}, r"state\[2\] = 4; it must be one of 0 ANSWERED"),
        ({"path": [0, 0, 65536]}, r"path\[2\] = 65536; it must be a whole number"),
        ({"path": [0, 1, 0]}, r"path\[1\] = 1; it must be the number of one of the 1 paths"),
        ({"service": [0.1, 0.1]}, r"service has the shape \(2,\)"),
        ({"sla": 0.0}, "sla = 0.0; it must be a positive number"),
    ],
)
def test_impossible_values_are_refused(change, message):
    columns = {"arrival": [0.0, 1.0, 2.0], "size": [1, 1, 1], "state": [0, 0, 0], "latency": [0.1, 0.1, 0.1]}
    with pytest.raises(InputError, match=message):
        Trace(**{**columns, "paths": ("table@cpu",), **change})


def test_files_that_are_no_traces_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_trace(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"neither in \.npz nor in \.jsonl"):
        write_trace(tmp_path / "t.csv", example())
    np.savez(tmp_path / "a.npz", arrival=np.zeros(3))
    with pytest.raises(InputError, match="no readable trace"):
        read_trace(tmp_path / "a.npz")
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(InputError, match=r"no \.npz file, or not a whole one") as refused:
        read_trace(tmp_path / "profile.json")
    assert "pickle" not in str(refused.value)
    path = tmp_path / "t.jsonl"
    write_trace(path, example())
    lines = path.read_text().splitlines()
    about = json.loads(lines[0])
    for change, message in (
        ({"version": 9}, "has version 9 of recsys_opt.trace"),
        ({"format": "other"}, "is of the format 'other'"),
        ({"sla": "soon"}, "paths, sla or circumstances"),
    ):
        path.write_text("\n".join([json.dumps({**about, **change}), *lines[1:]]))
        with pytest.raises(InputError, match=message):
            read_trace(path)
    for line, message in (
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"arrival": 0, "size": "2", "latency": 1}', "line 2: size = '2'; it must be a number"),
        ('{"arrival": 0, "size": 2, "state": "gone"}', "state = 'gone'; it must be one of answered"),
    ):
        path.write_text("\n".join([lines[0], line, *lines[2:]]))
        with pytest.raises(InputError, match=message):
            read_trace(path)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="has 2 of 3 queries"):
        read_trace(path)
    whole = tmp_path / "t.npz"
    write_trace(whole, example())
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(InputError, match="no readable trace"):
        read_trace(whole)
