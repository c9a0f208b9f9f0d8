"""A corpus of malformed and borderline input: single records, and whole files, each with what must become of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FILES", "GOOD", "RECORDS", "BadFile", "BadRecord", "wrapped"]

GOOD = "good"
"""In place of a kind of reject: the record is a document."""


@dataclass(frozen=True)
class BadRecord:
    """The bytes of one record, and the kind with which it is rejected; `element`: also as one of a JSON array."""

    name: str
    raw: bytes
    kind: str
    element: bool = True


@dataclass(frozen=True)
class BadFile:
    """A whole file: ids of the documents in it, kinds of its rejects, words of the error that ends it."""

    name: str
    data: bytes
    ids: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    error: str = ""


def record(**fields: object) -> bytes:
    return json.dumps({"id": "x", "text": "words", **fields}).encode()


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _texts() -> Iterator[BadRecord]:
    for name, text in {
        "empty": "",
        "space": " ",
        "white": " \t\n\r ",
        "no-break space": "\u00a0",
        "ideographic space": "\u3000",
        "line separator": "\u2028",
    }.items():
        yield BadRecord(f"text of {name}", record(text=text), "empty_text")
    for name, value in {
        "null": None,
        "number": 1953,
        "fraction": 0.5,
        "true": True,
        "list": ["words"],
        "object": {"text": "words"},
        "empty list": [],
    }.items():
        yield BadRecord(f"text is {name}", record(text=value), "missing_text" if value is None else "invalid_text")
    yield BadRecord("no text", b'{"id": "x"}', "missing_text")
    yield BadRecord("text under another case", b'{"id": "x", "Text": "words"}', "missing_text")
    for name, text in {
        "zero-width space": "\u200b",
        "NUL": "a\0b",
        "control characters": "".join(map(chr, range(1, 32))),
        "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "combining marks": "e" + "\u0301" * 500,
        "right to left": "\u202eesrever",
        "private use": "\ue000\uf8ff",
        "noncharacters": "\ufffe\uffff\U0010ffff",
        "byte order mark": "\ufeffwords",
        "one letter": "x",
        "a megabyte": "word " * 200_000,
        "markup": "<script>alert(1)</script> & 'quotes' \"\"",
        "template": "{{ 7 * 7 }} ${jndi:x} %s %n",
        "JSON in a string": json.dumps({"id": "y", "text": "inner"}),
    }.items():
        yield BadRecord(f"text of {name}", record(text=text), GOOD)


def _ids() -> Iterator[BadRecord]:
    for name, value in {
        "empty": "",
        "true": True,
        "list": ["x"],
        "object": {"x": 1},
        "10,000 characters": "x" * 10_000,
    }.items():
        yield BadRecord(f"id is {name}", record(id=value), "invalid_id")
    yield BadRecord("id of 513 bytes", record(id="x" * 513), "invalid_id")
    yield BadRecord("id of 171 wide characters", record(id="図" * 171), "invalid_id")
    for name, value in {
        "null": None,
        "a number": 7,
        "zero": 0,
        "negative": -1,
        "a fraction": 1.5,
        "64 bits": 2**64 - 1,
        "more than 64 bits": 2**70,
        "a path": "../../etc/passwd",
        "slashes": "a/b\\c",
        "NUL": "a\0b",
        "newline": "a\nb",
        "quotes": "'; DROP TABLE documents; --",
        "percent": "%00%2e%2e",
        "white": " ",
        "512 bytes": "x" * 512,
        "170 wide characters": "図" * 170,
        "a hash": "doc#1",
        "emoji": "\U0001f4da",
    }.items():
        yield BadRecord(f"id is {name}", record(id=value), GOOD)
    yield BadRecord("no id", b'{"text": "words"}', GOOD)


def _numbers() -> Iterator[BadRecord]:
    for name, number in {
        "NaN": "NaN",
        "Infinity": "Infinity",
        "minus Infinity": "-Infinity",
    }.items():
        yield BadRecord(f"number {name}", raw(f'{{"id": "x", "text": "words", "n": {number}}}'), "not_finite")
    for name, number in {
        "1e400": "1e400",
        "2**64": str(2**64),
        "-2**63 - 1": str(-(2**63) - 1),
        "5,000 digits": "9" * 5000,
        "minus 1e309": "-1e309",
    }.items():
        kind = "number_out_of_range"
        yield BadRecord(f"number {name}", raw(f'{{"id": "x", "text": "words", "n": {number}}}'), kind)
    for number in ("01", "+1", "1.", ".5", "0x10", "1e", "--1", "1_000", "1,5", "nan", "inf"):
        element = "," not in number
        yield BadRecord(
            f"number {number}", raw(f'{{"id": "x", "text": "words", "n": {number}}}'), "invalid_json", element
        )
    for number in ("1e308", "-0", "-0.0", "5e-324", "1E+2", str(2**64 - 1), str(-(2**63)), "0.1"):
        yield BadRecord(f"number {number}", raw(f'{{"id": "x", "text": "words", "n": {number}}}'), GOOD)


def _structures() -> Iterator[BadRecord]:
    for name, value in {
        "null": "null",
        "true": "true",
        "number": "7",
        "string": '"words"',
        "array": '["x"]',
        "empty array": "[]",
    }.items():
        yield BadRecord(f"a record that is {name}", raw(value), "not_an_object")
    yield BadRecord("an empty object", b"{}", "missing_text")
    for depth in (63, 10, 1):
        nested = '{"a":' * depth + "1" + "}" * depth
        yield BadRecord(f"metadata {depth} deep", raw(f'{{"id":"x","text":"words","m":{nested}}}'), GOOD)
    for depth in (66, 500, 5_000, 100_000):
        for name, left, right in (("objects", '{"a":', "}"), ("arrays", "[", "]")):
            nested = left * depth + "1" + right * depth
            yield BadRecord(
                f"metadata of {depth} {name} in each other",
                raw(f'{{"id":"x","text":"words","m":{nested}}}'),
                "nested_too_deeply",
            )
    yield BadRecord("100,000 open brackets", b"[" * 100_000, "invalid_json|nested_too_deeply", element=False)
    yield BadRecord("100,000 open braces", b'{"a":' * 100_000, "invalid_json|nested_too_deeply", element=False)
    yield BadRecord("a key twice", b'{"id": "y", "id": "x", "text": "words"}', GOOD)
    yield BadRecord("text twice, the last one empty", b'{"id": "x", "text": "words", "text": ""}', "empty_text")
    yield BadRecord("an empty key", b'{"id": "x", "text": "words", "": 1}', GOOD)
    yield BadRecord("a key of 10,000 characters", record(**{"k" * 10_000: 1}), GOOD)
    yield BadRecord("10,000 keys", record(**{f"k{n}": n for n in range(10_000)}), GOOD)
    yield BadRecord("a key that looks like Python", record(__class__="x", __proto__={"a": 1}), GOOD)


def _syntax() -> Iterator[BadRecord]:
    whole = record()
    for cut in (1, 5, 9, 14, len(whole) - 1):
        yield BadRecord(f"cut after {cut} bytes", whole[:cut], "invalid_json", element=False)
    for name, text in {
        "single quotes": "{'id': 'x', 'text': 'words'}",
        "no quotes": "{id: 1, text: words}",
        "a trailing comma": '{"id": "x", "text": "words",}',
        "two commas": '{"id": "x",, "text": "words"}',
        "no colon": '{"id" "x"}',
        "a comment": '{"id": "x", "text": "words"} // said',
        "a comment inside": '{"id": "x", /* y */ "text": "words"}',
        "two records": '{"id": "x", "text": "words"}{"id": "y", "text": "words"}',
        "two records and a space": '{"id": "x", "text": "words"} {"id": "y", "text": "words"}',
        "two records and a comma": '{"id": "x", "text": "words"}, {"id": "y", "text": "words"}',
        "Python's None": '{"id": "x", "text": "words", "a": None}',
        "Python's True": '{"id": "x", "text": "words", "a": True}',
        "a bare word": "words",
        "a letter before": 'x{"id": "x", "text": "words"}',
        "a closing brace": "}",
        "a raw tab in a string": '{"id": "x", "text": "a\tb"}',
        "a bad escape": '{"id": "x", "text": "\\q"}',
        "half an escape": '{"id": "x", "text": "\\u12"}',
        "a string that does not end": '{"id": "x", "text": "words}',
        "HTML": "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        "CSV": "x,words,1953",
        "YAML": "id: x",
        "a log line": "2026-11-21 03:00:00 ERROR connection reset",
        "an SSE line": 'data: {"id": "x", "text": "words"}',
        "a record separator": '\x1e{"id": "x", "text": "words"}',
    }.items():
        yield BadRecord(name, raw(text), "invalid_json", element=False)
    for name, bad in {
        "a lone byte": b"\xff",
        "a cut character": "ü".encode()[:1],
        "an overlong slash": b"\xc0\xaf",
        "a surrogate in bytes": b"\xed\xa0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80",
        "Latin-1": "für".encode("latin-1"),
        "Windows quotes": b"\x93words\x94",
        "a UTF-16 mark": b"\xff\xfe",
    }.items():
        yield BadRecord(f"bytes: {name}", b'{"id": "x", "text": "' + bad + b' words"}', "invalid_utf8")
    for name, escape in {
        "high": "\\ud800",
        "low": "\\udc00",
        "swapped": "\\udc00\\ud800",
        "high before a letter": "\\ud83dx",
    }.items():
        yield BadRecord(f"surrogate: {name}", raw(f'{{"id": "x", "text": "words {escape}"}}'), "lone_surrogate")
        yield BadRecord(
            f"surrogate in metadata: {name}", raw(f'{{"id": "x", "text": "w", "m": "{escape}"}}'), "lone_surrogate"
        )
    yield BadRecord("a pair of surrogates", raw('{"id": "x", "text": "\\ud83d\\udcda"}'), GOOD)
    yield BadRecord("every escape", raw('{"id": "x", "text": "\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9"}'), GOOD)
    yield BadRecord("white space around", b'  \t{"id" : "x" , "text" : "words"}  \t', GOOD)
    yield BadRecord("a record over the limit", record(text="x" * 2_000_000), "too_large")
    yield BadRecord("a wide record over the limit", record(text="図" * 700_000), "too_large")


RECORDS = [*_texts(), *_ids(), *_numbers(), *_structures(), *_syntax()]


def wrapped(bad: BadRecord) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of files that hold the record between two good ones."""
    first, last = record(id="first"), record(id="last")
    yield "lf.jsonl", b"\n".join([first, bad.raw, last, b""])
    yield "crlf.jsonl", b"\r\n".join([first, bad.raw, last, b""])
    yield "blank.jsonl", b"\n\n".join([first, bad.raw, last])
    if bad.element:
        yield "array.json", b"[" + b",".join([first, bad.raw, last]) + b"]"
        yield "object.json", b'{"count": 3, "documents": [\n' + b" ,\n".join([first, bad.raw, last]) + b"\n]}"


ONE = record(id="a")
TWO = record(id="b")
LINES = ONE + b"\n" + TWO + b"\n"
BOTH = ("a", "b")

FILES = [
    BadFile("empty.jsonl", b""),
    BadFile("newlines.jsonl", b"\n\n\r\n\n"),
    BadFile("white.jsonl", b"  \t \n   \n"),
    BadFile("mark.jsonl", b"\xef\xbb\xbf" + LINES, BOTH),
    BadFile("mark only.jsonl", b"\xef\xbb\xbf"),
    BadFile("no end.jsonl", ONE + b"\n" + TWO, BOTH),
    BadFile("cut.jsonl", ONE + b"\n" + TWO[:-4], ("a",), ("invalid_json",)),
    BadFile("old Mac.jsonl", ONE + b"\r" + TWO, (), ("invalid_json",)),
    BadFile("utf-16.jsonl", LINES.decode().encode("utf-16"), error="UTF-16"),
    BadFile("utf-16-le.jsonl", b"\xff\xfe" + LINES.decode().encode("utf-16-le"), error="UTF-16"),
    BadFile("utf-16-be.jsonl", b"\xfe\xff" + LINES.decode().encode("utf-16-be"), error="UTF-16"),
    BadFile("utf-32.jsonl", LINES.decode().encode("utf-32"), error="UTF-32"),
    BadFile("nul.jsonl", ONE + b"\n" + b"\0" * 4096 + b"\n" + TWO + b"\n", BOTH, ("invalid_json",)),
    BadFile("pretty.jsonl", json.dumps(json.loads(ONE), indent=2).encode(), (), ("invalid_json",) * 4),
    BadFile("empty array.json", b"[]"),
    BadFile("array of white.json", b" [ \n ] "),
    BadFile("array.json", b"[" + ONE + b"," + TWO + b"]", BOTH),
    BadFile("cut array.json", b"[" + ONE + b"," + TWO, BOTH, (), "end of the document"),
    BadFile("cut element.json", b"[" + ONE + b"," + TWO[:-5], ("a",), (), "ends"),
    BadFile("no documents.json", b'{"count": 0}', error="array"),
    BadFile("a number.json", b"42", error="array"),
    BadFile("a string.json", b'"words"', error="array"),
    BadFile("nothing.json", b""),
    BadFile("mark.json", b"\xef\xbb\xbf[" + ONE + b"]", ("a",)),
    BadFile("two documents.json", b"[" + ONE + b"] [" + TWO + b"]", ("a",), (), "follows"),
    BadFile("html.json", b"<!DOCTYPE html><html></html>", error="no array"),
    BadFile("good.jsonl.gz", gzip.compress(LINES), BOTH),
    BadFile("two members.jsonl.gz", gzip.compress(ONE + b"\n") + gzip.compress(TWO + b"\n"), BOTH),
    BadFile("empty member.jsonl.gz", gzip.compress(b"") + gzip.compress(LINES), BOTH),
    BadFile("not gzip.jsonl.gz", LINES, error="gz"),
    BadFile("no bytes.jsonl.gz", b""),
    BadFile("cut.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], ("a",), (), "gz|ends|cut"),
    BadFile("garbage behind.jsonl.gz", gzip.compress(LINES) + b"garbage", BOTH, (), "gz|behind|garbage|bytes"),
    BadFile(
        "bomb.jsonl.gz",
        gzip.compress(ONE + b"\n" + b"0" * 300_000_000 + b"\n" + TWO + b"\n", 9),
        BOTH,
        ("too_large",),
    ),
]
