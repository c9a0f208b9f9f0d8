"""From the bytes of a record to a valid document, or to the reason why it is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ragingest.documents import Document, Fault, Record, document_digest
from ragingest.errors import RejectedError
from ragingest.settings import JobSettings

__all__ = ["MAX_ID_BYTES", "MAX_NESTING", "Decoder", "FieldMapping", "diagnose", "flattened"]

MAX_ID_BYTES = 512
"""Pinecone's limit, the lowest of the stores'; a job can then change stores."""

MAX_NESTING = 64
"""Levels of metadata. JSON readers in the stores' engines give up at 128."""

EXACT_INTEGERS = 2**53
"""Up to here a 64-bit float holds every integer."""

TEXT_JOINT = "\n\n"

_decode = msgspec.json.Decoder().decode
_NOT_EMPTY = re.compile(r"\S").search


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """Which keys of a record hold what.

    Several text fields are joined by an empty line; those that are missing are left out. With
    `metadata` None, every key that is neither id nor text is metadata, and an object under
    `metadata` is unfolded into it. Of that, `keep` names the keys that are kept (None: all), and
    `flatten` makes it one level deep for stores that take no more: see `flattened`.
    """

    id: str = "id"
    text: Sequence[str] = ("text",)
    metadata: str | None = None
    keep: Sequence[str] | None = None
    flatten: bool = False

    @classmethod
    def of(cls, settings: JobSettings) -> FieldMapping:
        return cls(
            settings.id_field,
            settings.text_fields,
            settings.metadata_field,
            settings.metadata_keys,
            settings.flatten_metadata,
        )


class Decoder:
    """Decodes records one at a time.

    A record without an id gets the hexadecimal digest of its content; `made_up_ids` counts them.
    """

    def __init__(self, mapping: FieldMapping | None = None) -> None:
        self.mapping = mapping or FieldMapping()
        self.made_up_ids = 0
        self._text_fields = tuple(self.mapping.text)
        self._only_text = self._text_fields[0] if len(self._text_fields) == 1 else None

    def decode(self, record: Record) -> Document:
        """Make a document of `record`.

        Raises:
            RejectedError: the record is not one; `kind` and message say why.
        """
        fields = _parse(record)
        text = self._text(fields)
        document_id = self._id(fields)
        metadata = self._metadata(fields, record)
        try:
            digest = document_digest(text, metadata)
        except OverflowError:
            raise RejectedError(
                "number_out_of_range", "an integer in the metadata needs more than 64 bits"
            ) from None
        if document_id is None:
            self.made_up_ids += 1
            document_id = digest.hex()
        return Document(document_id, text, metadata, digest, record)

    def id_hint(self, record: Record) -> str | None:
        """The id of a rejected record, where one can be read."""
        try:
            value = _decode(record.raw)[self.mapping.id]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, KeyError, IndexError):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        return str(value)[:MAX_ID_BYTES]

    def _text(self, fields: dict[str, Any]) -> str:
        if self._only_text is not None:
            text = fields.pop(self._only_text, None)
            if type(text) is str and _NOT_EMPTY(text):
                return text
            self._refuse_text(self._only_text, text)
        parts = []
        for name in self._text_fields:
            part = fields.pop(name, None)
            if part is None:
                continue
            if type(part) is not str:
                self._refuse_text(name, part)
            if _NOT_EMPTY(part):
                parts.append(part)
        if not parts:
            raise RejectedError("empty_text", f"none of the fields {', '.join(self._text_fields)} holds any text")
        return TEXT_JOINT.join(parts)

    @staticmethod
    def _refuse_text(name: str, value: object) -> None:
        if value is None:
            raise RejectedError("missing_text", f'the record has no text: "{name}" is missing or null')
        if type(value) is not str:
            raise RejectedError("invalid_text", f'"{name}" is {_json_type(value)}, not a string')
        kind = "empty" if not value else "only white space"
        raise RejectedError("empty_text", f'"{name}" is {kind}')

    def _id(self, fields: dict[str, Any]) -> str | None:
        value = fields.pop(self.mapping.id, None)
        if type(value) is str:
            document_id = value
        elif value is None:
            return None
        elif type(value) is int or type(value) is float:
            document_id = str(value)
        else:
            raise RejectedError(
                "invalid_id", f'"{self.mapping.id}" is {_json_type(value)}, not a string or a number'
            )
        if not document_id:
            raise RejectedError("invalid_id", f'"{self.mapping.id}" is an empty string')
        if len(document_id) * 4 > MAX_ID_BYTES and len(document_id.encode()) > MAX_ID_BYTES:
            raise RejectedError(
                "invalid_id",
                f'"{self.mapping.id}" has {len(document_id.encode()):,} bytes, over the limit of {MAX_ID_BYTES}',
            )
        return document_id

    def _metadata(self, fields: dict[str, Any], record: Record) -> dict[str, Any]:
        name = self.mapping.metadata or "metadata"
        if name in fields:
            inner = fields.pop(name)
            if inner is not None and type(inner) is not dict:
                raise RejectedError("invalid_metadata", f'"{name}" is {_json_type(inner)}, not an object')
            if inner:
                if self.mapping.metadata is not None or not fields:
                    fields = inner
                elif fields.keys().isdisjoint(inner):
                    fields.update(inner)
                else:
                    fields[name] = inner
            elif self.mapping.metadata is not None:
                fields = {}
        elif self.mapping.metadata is not None:
            fields = {}
        if record.raw.count(b"{") + record.raw.count(b"[") > MAX_NESTING and _depth(fields) > MAX_NESTING:
            raise RejectedError("nested_too_deeply", f"metadata is nested more than {MAX_NESTING} levels deep")
        if self.mapping.keep is not None:
            fields = {key: fields[key] for key in self.mapping.keep if key in fields}
        return flattened(fields) if self.mapping.flatten else fields


def flattened(fields: dict[str, Any]) -> dict[str, Any]:
    """Metadata one level deep, for stores that keep strings, numbers, booleans and lists of strings.

    A nested object becomes keys joined by dots; null and empty objects go; a list that does not hold
    strings only becomes one of strings, each element as JSON; an integer beyond 2**53, which a 64-bit
    float need not hold, becomes text. Where two keys become one, the outer wins.
    """
    flat: dict[str, Any] = {}
    todo = [("", fields)]
    while todo:
        prefix, level = todo.pop(0)
        for key, value in level.items():
            name = prefix + key
            if type(value) is dict:
                todo.append((name + ".", value))
            elif value is not None:
                flat.setdefault(name, _flat_value(value))
    return flat


def _flat_value(value: Any) -> Any:
    if type(value) is list:
        return _strings(value)
    return str(value) if type(value) is int and abs(value) > EXACT_INTEGERS else value


def _strings(values: list[Any]) -> list[str]:
    return [value if type(value) is str else msgspec.json.encode(value).decode() for value in values]


def _parse(record: Record) -> dict[str, Any]:
    if record.fault is not None:
        raise RejectedError(*record.fault)
    try:
        value = _decode(record.raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(*diagnose(record.raw, error)) from None
    if type(value) is not dict:
        raise RejectedError("not_an_object", f"the record is {_json_type(value)}, not an object")
    return value


def diagnose(raw: bytes, error: Exception) -> Fault:
    """Say in a person's words why `raw` could not be decoded; `error` is what the fast decoder said."""
    if isinstance(error, RecursionError):
        return Fault("nested_too_deeply", "the record is nested too deeply")
    try:
        text = raw.decode()
    except UnicodeDecodeError as bad:
        return Fault("invalid_utf8", f"byte {bad.start} of the record is not UTF-8 ({bad.reason})")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_read_integer)
    except _NotJSONNumberError as bad_number:
        return Fault("not_finite", f"the record holds {bad_number}, which JSON does not have")
    except _HugeNumberError:
        return Fault("number_out_of_range", "an integer in the record has too many digits")
    except RecursionError:
        return Fault("nested_too_deeply", "the record is nested too deeply")
    except json.JSONDecodeError as bad_json:
        return Fault("invalid_json", f"not valid JSON: {bad_json.msg} at character {bad_json.pos}")
    if _holds(value, _is_surrogate):
        return Fault("lone_surrogate", "a string of the record holds half of a surrogate pair (\\ud800 to \\udfff)")
    if _holds(value, _is_infinite):
        return Fault("number_out_of_range", "a number in the record is too large for a 64-bit float")
    return Fault("invalid_json", f"not valid JSON: {error}")


class _NotJSONNumberError(ValueError):
    pass


class _HugeNumberError(ValueError):
    pass


def _refuse_constant(name: str) -> None:
    raise _NotJSONNumberError(name)


def _read_integer(digits: str) -> int:
    if len(digits) > 4000:  # the interpreter's own bound on int(str) is 4,300 digits
        raise _HugeNumberError
    return int(digits)


def _is_surrogate(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _holds(value: object, test: Any) -> bool:
    todo = [value]
    while todo:
        item = todo.pop()
        if test(item):
            return True
        if isinstance(item, dict):
            todo.extend(item.keys())
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return False


def _depth(value: object) -> int:
    deepest = 0
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        deepest = max(deepest, depth)
        if isinstance(item, dict):
            todo.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, list):
            todo.extend((inner, depth + 1) for inner in item)
    return deepest


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
