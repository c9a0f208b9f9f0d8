from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from ragingest.decoding import MAX_ID_BYTES, MAX_NESTING, Decoder, FieldMapping
from ragingest.documents import Document, Fault, Record, document_digest
from ragingest.errors import RejectedError
from tests.unit.core.builders import record

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)
texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() != "")
finite = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


def decode(value: Any, mapping: FieldMapping | None = None) -> Document:
    return Decoder(mapping).decode(record(value))


def refusal(value: Any, mapping: FieldMapping | None = None) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        decode(value, mapping)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "kind", "reason"),
    [
        (b"", "invalid_json", "Expecting value"),
        (b'{"id": "a", "te', "invalid_json", "Unterminated string"),
        (b'{"id": "a", "text": "b"} x', "invalid_json", "Extra data at character 25"),
        (b'{"id": "a", "text": "b\x01"}', "invalid_json", "control character"),
        (b"{'id': 'a'}", "invalid_json", "character 1"),
        (b"[]", "not_an_object", "an array"),
        (b'"text"', "not_an_object", "a string"),
        (b"null", "not_an_object", "null"),
        (b"true", "not_an_object", "true"),
        (b"12", "not_an_object", "a number"),
        (b'{"id": "a"}', "missing_text", '"text" is missing or null'),
        (b'{"id": "a", "text": null}', "missing_text", '"text" is missing or null'),
        (b'{"id": "a", "text": 7}', "invalid_text", '"text" is a number'),
        (b'{"id": "a", "text": true}', "invalid_text", '"text" is true'),
        (b'{"id": "a", "text": ["b"]}', "invalid_text", '"text" is an array'),
        (b'{"id": "a", "text": {"b": 1}}', "invalid_text", '"text" is an object'),
        (b'{"id": "a", "text": ""}', "empty_text", '"text" is empty'),
        (b'{"id": "a", "text": " \\n\\t\\u3000\\u00a0"}', "empty_text", "only white space"),
        (b'{"id": [1], "text": "b"}', "invalid_id", "an array"),
        (b'{"id": {}, "text": "b"}', "invalid_id", "an object"),
        (b'{"id": true, "text": "b"}', "invalid_id", "true"),
        (b'{"id": "", "text": "b"}', "invalid_id", "empty"),
        (b'{"id": "' + b"x" * 513 + b'", "text": "b"}', "invalid_id", "513 bytes, over the limit of 512"),
        (b'{"id": "' + b"\xc3\xa9" * 257 + b'", "text": "b"}', "invalid_id", "514 bytes"),
        (b'{"id": ' + b"7" * 513 + b', "text": "b"}', "invalid_id", "513 bytes"),
        (b'{"id": "a", "text": "b\xff"}', "invalid_utf8", "byte 22"),
        (b'{"id": "a", "text": "\xed\xa0\x80"}', "invalid_utf8", "byte 21"),
        (b'{"id": "a", "text": "\\ud800"}', "lone_surrogate", "surrogate pair"),
        (b'{"id": "a", "text": "b", "m": ["\\udfff"]}', "lone_surrogate", "surrogate pair"),
        (b'{"id": "a", "text": "b", "\\ud800": 1}', "lone_surrogate", "surrogate pair"),
        (b'{"id": "a", "text": "b", "n": NaN}', "not_finite", "NaN"),
        (b'{"id": "a", "text": "b", "n": Infinity}', "not_finite", "Infinity"),
        (b'{"id": "a", "text": "b", "n": -Infinity}', "not_finite", "-Infinity"),
        (b'{"id": "a", "text": "b", "n": 1e999}', "number_out_of_range", "64-bit float"),
        (b'{"id": 1e999, "text": "b"}', "number_out_of_range", "64-bit float"),
        (b'{"id": "a", "text": "b", "n": 18446744073709551616}', "number_out_of_range", "64 bits"),
        (b'{"id": "a", "text": "b", "n": ' + b"9" * 5000 + b"}", "number_out_of_range", "too many digits"),
        (b'{"id": ' + b"9" * 5000 + b', "text": "b"}', "number_out_of_range", "too many digits"),
        (b"[" * 100_000, "nested_too_deeply", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested_too_deeply", "nested too deeply"),
        (b'{"id": "a", "text": "b", "metadata": 3}', "invalid_metadata", '"metadata" is a number'),
        (b'{"id": "a", "text": "b", "metadata": []}', "invalid_metadata", '"metadata" is an array'),
    ],
)
def test_a_record_that_is_no_document_is_refused_with_its_reason(raw: bytes, kind: str, reason: str) -> None:
    error = refusal(raw)
    assert error.kind == kind
    assert reason in str(error)


def test_a_fault_of_the_source_is_the_reason_whatever_the_bytes_say() -> None:
    good = record({"id": "a", "text": "b"})
    with pytest.raises(RejectedError) as caught:
        Decoder().decode(replace(good, fault=Fault("too_large", "over the limit")))
    assert (caught.value.kind, str(caught.value)) == ("too_large", "over the limit")


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["arrays", "objects"])
def test_metadata_is_accepted_up_to_the_level_that_stores_read_and_not_beyond(nest: Any) -> None:
    value: Any = 1
    for _ in range(MAX_NESTING - 1):
        value = nest(value)
    assert decode({"id": "a", "text": "b", "m": value}).metadata == {"m": value}
    error = refusal({"id": "a", "text": "b", "m": nest(value)})
    assert error.kind == "nested_too_deeply"


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert decode({"id": "a", "text": "[" * 100, "m": [[]] * 100}).metadata == {"m": [[]] * 100}


@given(values)
@example(["[" * 1000])
def test_any_json_value_gives_a_document_or_a_refusal(value: Any) -> None:
    _decode_or_refuse(json.dumps(value).encode())


@given(st.fixed_dictionaries({}, optional={"id": values, "text": values | texts, "metadata": values, "x": values}))
def test_any_json_object_gives_a_document_or_a_refusal(value: Any) -> None:
    _decode_or_refuse(json.dumps(value).encode())


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_refusal(raw: bytes) -> None:
    _decode_or_refuse(raw)


@given(st.data())
def test_a_record_with_a_damaged_byte_gives_a_document_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray('{"id": "a", "text": "é\\u00e9 x", "n": [1.5e3, -7, null], "m": {"k": true}}'.encode())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(raw))


def _decode_or_refuse(raw: bytes) -> None:
    decoder = Decoder()
    read = Record(0, 0, raw)
    outcome: Document | RejectedError
    try:
        outcome = decoder.decode(read)
    except RejectedError as error:
        outcome = error
    if isinstance(outcome, RejectedError):
        assert outcome.kind
        assert str(outcome)
        hint = decoder.id_hint(read)
        assert hint is None or len(hint) <= MAX_ID_BYTES
    else:
        assert outcome.record is read
        assert 0 < len(outcome.id.encode()) <= MAX_ID_BYTES
        assert outcome.text.strip()
        assert outcome.digest == document_digest(outcome.text, outcome.metadata)


@given(texts, st.dictionaries(st.text(max_size=4), finite, max_size=4))
def test_every_other_key_is_metadata_exactly_as_it_was(text: str, fields: dict[str, Any]) -> None:
    fields = {key: value for key, value in fields.items() if key not in ("id", "text", "metadata")}
    document = decode({"id": "a", "text": text} | fields)
    assert (document.id, document.text, document.metadata) == ("a", text, fields)


def test_the_last_of_two_equal_keys_counts() -> None:
    assert decode(b'{"id": "a", "text": "old", "text": "new", "id": "b"}').id == "b"
    assert decode(b'{"id": "a", "text": "old", "text": "new"}').text == "new"


@pytest.mark.parametrize(
    ("value", "expected"), [(7, "7"), (-7, "-7"), (1.5, "1.5"), (10**100, "1" + "0" * 100), (0, "0"), (" ", " ")]
)
def test_a_number_as_id_is_taken_as_its_text(value: Any, expected: str) -> None:
    assert decode({"id": value, "text": "b"}).id == expected


def test_an_id_of_exactly_the_limit_is_accepted() -> None:
    assert decode({"id": "é" * (MAX_ID_BYTES // 2), "text": "b"}).id == "é" * (MAX_ID_BYTES // 2)


# -- ids that are made up ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"text": "b", "k": 1}, {"id": None, "text": "b", "k": 1}])
def test_a_record_without_an_id_gets_the_digest_of_its_content(value: Any) -> None:
    decoder = Decoder()
    assert decoder.decode(record(value)).id == document_digest("b", {"k": 1}).hex()
    assert decoder.made_up_ids == 1


def test_made_up_ids_are_counted_and_given_ones_are_not() -> None:
    decoder = Decoder()
    ids = [decoder.decode(record(value)).id for value in ({"text": "b"}, {"id": 1, "text": "b"}, {"text": "c"})]
    assert len(set(ids)) == 3
    assert decoder.made_up_ids == 2


def test_a_refused_record_makes_up_no_id() -> None:
    decoder = Decoder()
    with pytest.raises(RejectedError):
        decoder.decode(record({"text": "b", "n": 2**64}))
    assert decoder.made_up_ids == 0


# -- fields ------------------------------------------------------------------------------------------


def test_fields_may_have_other_names() -> None:
    document = decode({"key": 1, "body": "b", "id": 2, "text": "t"}, FieldMapping("key", ("body",)))
    assert (document.id, document.text, document.metadata) == ("1", "b", {"id": 2, "text": "t"})


def test_several_text_fields_are_joined_in_the_order_of_the_mapping() -> None:
    mapping = FieldMapping(text=("title", "body"))
    document = decode({"id": "a", "body": "b", "title": "t", "k": 1}, mapping)
    assert (document.text, document.metadata) == ("t\n\nb", {"k": 1})


@pytest.mark.parametrize("missing", [{}, {"title": None}, {"title": ""}, {"title": " \n"}])
def test_a_text_field_that_holds_nothing_is_left_out_of_the_joined_text(missing: dict[str, Any]) -> None:
    document = decode({"id": "a", "body": "b"} | missing, FieldMapping(text=("title", "body")))
    assert (document.text, document.metadata) == ("b", {})


def test_text_fields_that_all_hold_nothing_are_refused_by_name() -> None:
    error = refusal({"id": "a", "title": " "}, FieldMapping(text=("title", "body")))
    assert error.kind == "empty_text"
    assert "title, body" in str(error)


def test_one_of_several_text_fields_that_is_no_string_is_refused() -> None:
    error = refusal({"id": "a", "title": "t", "body": 3}, FieldMapping(text=("title", "body")))
    assert (error.kind, str(error)) == ("invalid_text", '"body" is a number, not a string')


def test_an_object_under_metadata_is_unfolded() -> None:
    inner = {"k": 1, "id": 2, "text": "x", "metadata": {"q": 1}}
    assert decode({"id": "a", "text": "b", "metadata": inner}).metadata == inner
    assert decode({"id": "a", "text": "b", "o": 3, "metadata": {"k": 1}}).metadata == {"o": 3, "k": 1}


def test_an_object_under_metadata_that_collides_with_other_keys_stays_as_it_is_and_nothing_is_lost() -> None:
    value = {"id": "a", "text": "b", "k": 1, "metadata": {"k": 2, "l": 3}}
    assert decode(value).metadata == {"k": 1, "metadata": {"k": 2, "l": 3}}


@pytest.mark.parametrize("empty", [None, {}])
def test_empty_metadata_is_none(empty: Any) -> None:
    assert decode({"id": "a", "text": "b", "metadata": empty}).metadata == {}
    assert decode({"id": "a", "text": "b", "k": 1, "metadata": empty}).metadata == {"k": 1}


def test_a_metadata_field_is_all_the_metadata_there_is() -> None:
    mapping = FieldMapping(metadata="meta")
    value = {"id": "a", "text": "b", "k": 1, "meta": {"k": 2}, "metadata": {"l": 1}}
    assert decode(value, mapping).metadata == {"k": 2}
    assert decode(value | {"meta": None}, mapping).metadata == {}
    assert decode(value | {"meta": {}}, mapping).metadata == {}
    assert decode({"id": "a", "text": "b", "k": 1}, mapping).metadata == {}


def test_a_metadata_field_that_is_no_object_is_refused_by_its_name() -> None:
    error = refusal({"id": "a", "text": "b", "meta": "m"}, FieldMapping(metadata="meta"))
    assert (error.kind, str(error)) == ("invalid_metadata", '"meta" is a string, not an object')


# -- hints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b'{"id": "a"}', "a"),
        (b'{"id": 7, "text": ""}', "7"),
        (b'{"id": "' + b"x" * 600 + b'"}', "x" * MAX_ID_BYTES),
        (b'{"id": [1]}', None),
        (b'{"text": ""}', None),
        (b"[1]", None),
        (b'"id"', None),
        (b"7", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_id_of_a_refused_record_is_told_where_it_can_be_read(raw: bytes, hint: str | None) -> None:
    assert Decoder().id_hint(Record(0, 0, raw)) == hint
