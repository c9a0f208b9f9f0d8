"""The messages of Pinecone's `VectorService`, as protobuf's own classes: what reads what our encoder wrote.

Field numbers are those of the published db_data.proto (API version 2025-10).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

__all__ = ["METHODS", "MESSAGES", "Struct"]

Struct: Any = struct_pb2.Struct

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "float": _Field.TYPE_FLOAT,
    "uint32": _Field.TYPE_UINT32,
    "bool": _Field.TYPE_BOOL,
}

# name: "[repeated] type number", or "map type number" for a map whose keys are strings
_SCHEMA: dict[str, dict[str, str]] = {
    "SparseValues": {"indices": "repeated uint32 1", "values": "repeated float 2"},
    "Vector": {
        "id": "string 1",
        "values": "repeated float 2",
        "sparse_values": "SparseValues 4",
        "metadata": "Struct 3",
    },
    "ScoredVector": {"id": "string 1", "score": "float 2", "values": "repeated float 3", "metadata": "Struct 4"},
    "Usage": {"read_units": "uint32 1"},
    "Pagination": {"next": "string 1"},
    "ListItem": {"id": "string 1"},
    "NamespaceSummary": {"vector_count": "uint32 1"},
    "UpsertRequest": {"vectors": "repeated Vector 1", "namespace": "string 2"},
    "UpsertResponse": {"upserted_count": "uint32 1"},
    "DeleteRequest": {
        "ids": "repeated string 1",
        "delete_all": "bool 2",
        "namespace": "string 3",
        "filter": "Struct 4",
    },
    "DeleteResponse": {},
    "FetchRequest": {"ids": "repeated string 1", "namespace": "string 2"},
    "FetchResponse": {"vectors": "map Vector 1", "namespace": "string 2", "usage": "Usage 3"},
    "ListRequest": {
        "prefix": "string 1",
        "limit": "uint32 2",
        "pagination_token": "string 3",
        "namespace": "string 4",
    },
    "ListResponse": {
        "vectors": "repeated ListItem 1",
        "pagination": "Pagination 2",
        "namespace": "string 3",
        "usage": "Usage 4",
    },
    "QueryRequest": {
        "namespace": "string 1",
        "top_k": "uint32 2",
        "filter": "Struct 3",
        "include_values": "bool 4",
        "include_metadata": "bool 5",
        "vector": "repeated float 7",
        "id": "string 8",
        "sparse_vector": "SparseValues 9",
    },
    "QueryResponse": {"matches": "repeated ScoredVector 2", "namespace": "string 3", "usage": "Usage 4"},
    "DescribeIndexStatsRequest": {"filter": "Struct 1"},
    "DescribeIndexStatsResponse": {
        "namespaces": "map NamespaceSummary 1",
        "dimension": "uint32 2",
        "index_fullness": "float 3",
        "total_vector_count": "uint32 4",
        "metric": "string 5",
        "vector_type": "string 6",
    },
}


def _message(name: str, fields: dict[str, str]) -> descriptor_pb2.DescriptorProto:
    message = descriptor_pb2.DescriptorProto(name=name)
    for field, words in fields.items():
        *kind, type_, number = words.split()
        label = _Field.LABEL_REPEATED if kind else _Field.LABEL_OPTIONAL
        made = message.field.add(name=field, number=int(number), label=label)
        if kind == ["map"]:
            entry = _message("".join(map(str.title, field.split("_"))) + "Entry", {"key": "string 1"})
            _type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), type_)
            entry.options.map_entry = True
            message.nested_type.append(entry)
            made.type, made.type_name = _Field.TYPE_MESSAGE, f".{name}.{entry.name}"
        else:
            _type(made, type_)
    return message


def _type(field: Any, name: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = ".google.protobuf.Struct" if name == "Struct" else f".{name}"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="pinecone_db_data.proto", syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    file.message_type.extend(_message(name, fields) for name, fields in _SCHEMA.items())
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in _SCHEMA}


MESSAGES = _build()
"""Message classes by name."""

METHODS = {
    f"/VectorService/{method}": (method, MESSAGES[f"{method}Request"])
    for method in ("Upsert", "Delete", "Fetch", "List", "Query", "DescribeIndexStats")
}
"""Path of a gRPC call: (method, class of its request)."""
