import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.server import json_form, wire
from recsys_opt.server.check import QueryCheck
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Answer, Query
from recsys_opt.serving.profile import ServedModel

MODEL = ServedModel(3, ("C1", "C2"), (5, 7_000_000), 8)
CHECK = QueryCheck(MODEL, "dlrm", max_samples=100, max_within_s=60.0)


def good(samples: int = 2, dtype: type = np.int64) -> tuple[np.ndarray, np.ndarray]:
    dense = np.arange(3 * samples, dtype=np.float32).reshape(samples, 3)
    ids = np.stack([np.arange(samples) % 5, np.arange(samples) + 6_999_900]).astype(dtype)
    return dense, ids


def decoded(body: bytes) -> Query:
    query = wire.decode_query(body, max_samples=CHECK.max_samples)
    CHECK.check(query)
    return query


@settings(max_examples=60)
@given(
    samples=st.integers(1, 100),
    wide=st.booleans(),
    within=st.one_of(st.none(), st.floats(1e-3, 60)),
    name=st.sampled_from(["", "dlrm"]),
)
def test_a_query_comes_back_as_it_was(samples: int, wide: bool, within: float | None, name: str):
    dense, ids = good(samples, np.int64 if wide else np.int32)
    body = wire.encode_query(dense, ids, within_s=within, model=name)
    if not name:
        assert len(body) == wire.query_bytes(samples, 3, 2, id_bytes=8 if wide else 4)
    query = decoded(body)
    np.testing.assert_array_equal(query.dense, dense)
    np.testing.assert_array_equal(query.ids, ids)
    assert query.ids.dtype == ids.dtype
    assert (query.within_s, query.model) == (within, name)


@settings(max_examples=60)
@given(
    probabilities=st.lists(st.floats(0, 1, width=32), max_size=50),
    paths=st.dictionaries(st.text(max_size=20), st.integers(0, 2**32 - 1), max_size=4),
    seconds=st.tuples(*[st.floats(0, 1e6)] * 4),
    batch=st.integers(0, 2**64 - 1),
)
def test_an_answer_comes_back_as_it_was(probabilities, paths, seconds, batch):
    answer = Answer(np.array(probabilities, np.float32), paths, *seconds, batch, 128)
    body = wire.encode_answer(answer)
    found = wire.decode_answer(body)
    np.testing.assert_array_equal(found.probabilities, answer.probabilities)
    assert list(found.paths.items()) == list(paths.items())
    assert (found.wait_s, found.service_s, found.model_s, found.total_s) == seconds
    assert (found.batch, found.batch_size) == (batch, 128)
    for cut in range(0, len(body), 7):
        with pytest.raises(InputError):
            wire.decode_answer(body[:cut])


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_or_are_a_query(body: bytes):
    with pytest.raises(RefusalError) as refused:
        decoded(body)
    assert refused.value.kind.http_status in (400, 404, 413)


@settings(max_examples=300)
@given(data=st.data())
def test_a_query_with_changed_bytes_is_refused_or_fits_the_model(data: st.DataObject):
    body = bytearray(wire.encode_query(*good(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        query = decoded(bytes(body))
    except RefusalError:
        return
    assert np.isfinite(query.dense).all()
    assert (query.ids >= 0).all()
    assert (query.ids < np.array(MODEL.cardinalities)[:, None]).all()


@settings(max_examples=200)
@given(data=st.data())
def test_an_answer_with_changed_bytes_is_refused_or_is_one(data: st.DataObject):
    answer = Answer(np.arange(5, dtype=np.float32), {"table@cpu": 3, "tt@cpu": 2}, 1.0, 2.0, 3.0, 4.0, 5, 6)
    body = bytearray(wire.encode_answer(answer))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        found = wire.decode_answer(bytes(body))
    except InputError:
        return
    assert len(found.probabilities) * 4 <= len(body)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(["C1", "C2"]), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=12,
)
NUMBERS = st.lists(st.lists(st.one_of(st.integers(-1, 6), st.floats()), min_size=1, max_size=3), max_size=3)


@settings(max_examples=400)
@given(
    st.one_of(
        JSON_VALUES,
        st.fixed_dictionaries(
            {"dense": st.one_of(NUMBERS, JSON_VALUES), "ids": st.one_of(NUMBERS, JSON_VALUES)},
            optional={"within_ms": JSON_VALUES, "model": JSON_VALUES},
        ),
    )
)
def test_json_of_any_kind_is_refused_or_fits_the_model(document: object):
    try:
        query = from_json(document)
    except RefusalError:
        return
    assert np.isfinite(query.dense).all()
    assert query.dense.shape == (query.samples, 3)
    assert ((query.ids >= 0) & (query.ids < np.array(MODEL.cardinalities)[:, None])).all()


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_text_of_any_kind_is_no_json_query(text: bytes):
    with pytest.raises(RefusalError) as refused:
        json_form.decode_query(text, MODEL, max_samples=100)
    assert refused.value.code == "bad_request"


def with_header(**changes: object) -> bytes:
    names = ("magic", "version", "flags", "samples", "columns", "features", "within", "named")
    body = wire.encode_query(*good(2))
    values = dict(zip(names, struct.unpack_from("<4sHHIHHdH6x", body), strict=True)) | changes
    return struct.pack("<4sHHIHHdH6x", *values.values()) + body[wire.HEADER_BYTES :]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "bad_request", "0 bytes"),
        (with_header()[:-1], "bad_request", "cut short"),
        (with_header() + b"x", "bad_request", "its header is wrong"),
        (with_header(magic=b"POST"), "bad_request", "b'POST'"),
        (with_header(version=2), "bad_request", "version 2; this server reads 1"),
        (with_header(flags=2), "bad_request", "flags 0x2"),
        (with_header(samples=2**32 - 1), "too_large", "4,294,967,295 samples; at most 100"),
        (with_header(within=float("nan")), "bad_request", "within nan s"),
        (with_header(within=-1.0), "bad_request", "within -1"),
        (with_header(within=61.0), "bad_request", "within 61 s; the server keeps a query for at most 60 s"),
        (with_header(named=8), "bad_request", "cut short"),
        (with_header(columns=65535), "bad_request", "need"),
    ],
)
def test_a_wrong_header_says_what_is_wrong(body: bytes, code: str, said: str):
    with pytest.raises(RefusalError, match=said) as refused:
        decoded(body)
    assert refused.value.code == code


def test_what_does_not_fit_the_model_is_named():
    dense, ids = good(2)
    cases = [
        (wire.encode_query(dense[:, :2], ids), "dense"),
        (wire.encode_query(dense, ids[:1]), "ids"),
        (wire.encode_query(dense[:0], ids[:, :0]), "no samples"),
        (wire.encode_query(dense, ids, model="other"), "no model 'other'"),
    ]
    for value in (np.nan, np.inf, -np.inf):
        bad = dense.copy()
        bad[1, 2] = value
        cases.append((wire.encode_query(bad, ids), rf"dense\[1, 2\] = {value}"))
    for feature, value in ((0, 5), (0, -1), (1, 7_000_000), (1, -(2**31)), (0, 2**31 - 1)):
        wrong = ids.copy()
        wrong[feature, 1] = value
        for kind in (np.int32, np.int64):
            cases.append(
                (
                    wire.encode_query(dense, wrong.astype(kind)),
                    f"= {value} is outside .*{MODEL.features[feature]}",
                )
            )
    huge = ids.copy()
    huge[1, 0] = -(2**63)
    cases.append((wire.encode_query(dense, huge), "outside"))
    for body, said in cases:
        with pytest.raises(RefusalError, match=said):
            decoded(body)


@pytest.mark.parametrize(
    ("dense", "ids", "within", "said"),
    [
        (np.zeros(3), np.zeros((2, 1), np.int64), None, "dense has the shape"),
        (np.zeros((1, 3)), np.zeros((2, 1)), None, "float64"),
        (np.zeros((1, 3)), np.zeros((2, 2), np.int64), None, r"\[features, 1\]"),
        (np.zeros((1, 3)), np.zeros((2, 1), np.int64), 0.0, "within_s = 0.0"),
    ],
)
def test_the_client_does_not_send_what_is_no_query(dense, ids, within, said):
    with pytest.raises(InputError, match=said):
        wire.encode_query(dense, ids, within_s=within)


def from_json(document: object) -> Query:
    text = document if isinstance(document, str) else json.dumps(document)
    query = json_form.decode_query(text.encode(), MODEL, max_samples=CHECK.max_samples)
    CHECK.check(query)
    return query


def test_json_says_the_same_by_feature_and_by_sample():
    dense, ids = good(3)
    by_feature = from_json({"dense": dense.tolist(), "ids": {"C2": ids[1].tolist(), "C1": ids[0].tolist()}})
    by_sample = from_json({"dense": dense.tolist(), "ids": ids.T.tolist(), "within_ms": 25, "model": "dlrm"})
    for query in (by_feature, by_sample):
        np.testing.assert_array_equal(query.dense, dense)
        np.testing.assert_array_equal(query.ids, ids)
    assert by_sample.within_s == 0.025


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"dense": [[NaN, 0, 0]], "ids": [[0, 0]]}', "NaN"),
        ('{"dense": [[1e999, 0, 0]], "ids": [[0, 0]]}', "inf"),
        ('{"dense": [[1e300, 0, 0]], "ids": [[0, 0]]}', "inf"),
        ({"dense": [[10**400, 0, 0]], "ids": [[0, 0]]}, "more than 64 bits"),
        ('{"dense": [[0, 0, 0]], "ids": [[' + "9" * 5000 + ", 0]]}", "no JSON"),
        ([1], "no JSON object"),
        ({"ids": []}, "no 'dense'"),
        ({"dense": [], "ids": []}, "no samples"),
        ({"dense": [[0, 0]], "ids": [[0, 0]]}, r"dense\[0\] has 2 numbers; it must have 3"),
        ({"dense": [[0, 0, 0]], "ids": [[0]]}, r"ids\[0\] has 1 numbers"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0.5]]}, r"ids\[0\]\[1\] = 0.5; it must be a whole number"),
        ({"dense": [[0, 0, True]], "ids": [[0, 0]]}, r"dense\[0\]\[2\] = True"),
        ({"dense": [[0, 0, "1"]], "ids": [[0, 0]]}, r"dense\[0\]\[2\] = 1; it must be a number"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0], [0, 0]]}, "ids has 2 samples, dense has 1"),
        ({"dense": [[0, 0, 0]], "ids": [[2**63, 0]]}, "more than 64 bits"),
        ({"dense": [[0, 0, 0]], "ids": {"C1": [0]}}, "lacks the feature C2"),
        ({"dense": [[0, 0, 0]], "ids": {"C1": [0], "C2": [0], "C3": [0]}}, "'C3'"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 7_000_000]]}, "7000000 is outside"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0]], "within_ms": -1}, "within_ms"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0]], "within_ms": 10**400}, "within_ms|within 1e"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0]], "model": 1}, "model"),
        ({"dense": [[0, 0, 0]], "ids": [[0, 0]], "extra": 1}, "'extra'"),
        ({"dense": [[0, 0, 0]] * 101, "ids": [[0, 0]] * 101}, "101 samples; at most 100"),
    ],
)
def test_wrong_json_says_what_is_wrong(document: object, said: str):
    with pytest.raises(RefusalError, match=said):
        from_json(document)


def test_json_answers_are_short_and_exact():
    answer = Answer(np.array([0.1, 0.25], np.float32), {"table@cpu": 2}, 1e-3, 2e-3, 1.5e-3, 4e-3, 7, 128)
    document = json.loads(json_form.encode_answer(answer))
    assert document["probabilities"] == [0.1, 0.25]
    assert np.float32(document["probabilities"][0]) == answer.probabilities[0]
    assert document["paths"] == {"table@cpu": 2}
    assert (document["wait_ms"], document["service_ms"], document["model_ms"]) == (1, 2, 1.5)
