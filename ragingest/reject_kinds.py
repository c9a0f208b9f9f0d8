"""Every kind of reject: who refuses it, why, and what to do about it. Messages, reports and docs are made from it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REJECT_KINDS", "RejectKind", "advice_for"]


class RejectKind(NamedTuple):
    """`stages` that refuse such records, the `cause`, and `advice`: what a person can do. All in Markdown."""

    stages: str
    cause: str
    advice: str


REJECT_KINDS = {
    "invalid_json": RejectKind(
        "decode", "not JSON, such as a line that was cut; the message names the character", "mend the record"
    ),
    "not_an_object": RejectKind(
        "decode", "JSON, but an array, a string, a number", "make it an object with an id and a text"
    ),
    "invalid_utf8": RejectKind("decode", "bytes that are not UTF-8", "convert the file, for example with iconv"),
    "lone_surrogate": RejectKind(
        "decode",
        r"a string holds half of a surrogate pair, such as `\ud800`",
        "mend the program that cut a text in the middle of a character",
    ),
    "not_finite": RejectKind(
        "decode, embed, upsert",
        "`NaN` or `Infinity` in the record; or the embedder made a vector that holds one",
        "write null, or leave the key out",
    ),
    "number_out_of_range": RejectKind(
        "decode", "a number over a 64-bit float, or an integer in the metadata over 64 bits", "write it as a string"
    ),
    "nested_too_deeply": RejectKind("decode", "metadata of more than 64 levels", "flatten it"),
    "too_large": RejectKind(
        "decode", "the record has more bytes than `--max-record-bytes`", "raise the limit, or split the record"
    ),
    "missing_text": RejectKind(
        "decode", "the text field is missing or null", "name the right one with `--text-field`"
    ),
    "invalid_text": RejectKind(
        "decode", "the text is a number, an array, an object", "name another field, or make it a string"
    ),
    "empty_text": RejectKind("decode", "the text is empty or white space", "nothing, if there is nothing to find"),
    "invalid_id": RejectKind(
        "decode",
        "the id is neither string nor number, is empty, or has more than 512 bytes",
        "name another field with `--id-field`, or mend it",
    ),
    "invalid_metadata": RejectKind(
        "decode", "the metadata field is no object", "name another with `--metadata-field`, or mend it"
    ),
    "no_tokens": RejectKind("embed", "nothing in the text is known to the embedder", "nothing, if it is noise"),
    "too_many_tokens": RejectKind(
        "embed",
        "the text has more tokens than the embedder takes, or may well have; it was not sent",
        "leave out `--no-chunk`, or make `--chunk-size` smaller, or add `--truncate` to `--no-chunk`",
    ),
    "out_of_memory": RejectKind(
        "embed",
        "the text by itself needs more memory than the device of the embedder has",
        "make `--chunk-size` smaller, or use another `--device`",
    ),
    "refused_by_embedder": RejectKind(
        "embed",
        "the server of the embedder refuses the text by itself, not only its batch; the message is the server's",
        "see the message",
    ),
    "bm25": RejectKind("embed", "no BM25 vector can be made of the text", "report it with the record"),
    "nul_character": RejectKind(
        "upsert",
        "a NUL character (U+0000) in id, text or metadata, which Postgres cannot keep",
        "remove it; binary data has no place in a text",
    ),
    "nested_metadata": RejectKind(
        "upsert",
        "an object, null or a list of other things than strings in the metadata, which Pinecone does not keep",
        "give `--flatten-metadata`, or leave it out with `--metadata-keys`",
    ),
    "inexact_integer": RejectKind(
        "upsert",
        "an integer in the metadata that Pinecone, which keeps 64-bit floats, would change",
        "give `--flatten-metadata`, which makes it text, or leave it out with `--metadata-keys`",
    ),
    "metadata_too_large": RejectKind(
        "upsert",
        "metadata and text of more than the 40 KB that Pinecone keeps of a record",
        "leave some out with `--metadata-keys` or `--drop-text`, or make `--chunk-size` smaller",
    ),
    "reserved_key": RejectKind(
        "upsert",
        "a metadata key that begins with `$` or `ragingest_`, in Pinecone",
        "rename it, or leave it out with `--metadata-keys`",
    ),
    "zero_vector": RejectKind(
        "upsert", "a vector of nothing but zeros, which Pinecone does not take", "nothing, if the text is noise"
    ),
    "refused_by_store": RejectKind(
        "upsert",
        "the store's server refuses the point by itself, not only its batch; the message is the server's",
        "see the message",
    ),
    "integer_too_large": RejectKind(
        "upsert",
        "an integer in the metadata over 2^63 - 1, which Qdrant's gRPC cannot carry",
        "load over `http://`, or write it as a string",
    ),
    "too_large_for_store": RejectKind(
        "upsert",
        "the point by itself is over what the store takes in one request",
        "make `--chunk-size` smaller, or keep less beside the vector: `--metadata-keys`, `--drop-text`",
    ),
    "payload": RejectKind(
        "upsert", "the store cannot keep the document as it is", "see the message; report it with the record"
    ),
}


def advice_for(kind: str) -> str:
    """What to do about rejects of this kind, also where another version wrote them."""
    known = REJECT_KINDS.get(kind)
    return known.advice if known else "see the message"
