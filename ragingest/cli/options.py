"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from ragingest.embedders import EMBEDDERS
from ragingest.errors import ExitCode, UsageError
from ragingest.library import absolute
from ragingest.settings import ErrorBudget, JobSettings, MemoryLimit, OnDuplicate, RunOptions, parse_size
from ragingest.stores import STORES

__all__ = [
    "BaseUrl",
    "BatchSize",
    "Bulk",
    "CheckpointDir",
    "CheckpointInterval",
    "ChunkOverlap",
    "ChunkSize",
    "Collection",
    "Concurrency",
    "DeleteMissing",
    "Device",
    "Dimensions",
    "DropText",
    "EXIT_CODES",
    "Embedder",
    "FlattenMetadata",
    "Format",
    "GiveUpAfter",
    "IdField",
    "IndexMetadata",
    "Json",
    "JsonPath",
    "KeepEmbeddings",
    "MadeBy",
    "MaxConcurrency",
    "MaxCost",
    "MaxDelete",
    "MaxErrors",
    "MaxMemory",
    "MaxRecordBytes",
    "MaxTokens",
    "MetadataField",
    "MetadataKeys",
    "Model",
    "Namespace",
    "OnDisk",
    "PollInterval",
    "PricePerMillion",
    "Quantization",
    "Quiet",
    "Rpm",
    "Source",
    "Spool",
    "SplitLong",
    "Store",
    "StorePath",
    "TextField",
    "Timeout",
    "Tpm",
    "UpsertSize",
    "Wait",
    "Url",
    "apply_options",
    "WhichDuplicate",
    "Yes",
    "job_settings",
    "names",
]

EXIT_CODES = "Exit codes: " + "; ".join(f"{int(code)} {code.meaning}" for code in ExitCode) + "."

RECORDS = "Records"
EMBEDDING = "Embedding"
STORING = "Store"
RUNNING = "How it runs"
API = "Embeddings API"
OUTPUT = "Output"

Source = Annotated[
    str,
    typer.Argument(help="A .jsonl, .ndjson or .json file, also .gz, .bz2, .xz or .zst, or - for standard input."),
]
Format = Annotated[
    Literal["auto", "jsonl", "json"],
    typer.Option("--format", help="auto goes by the file's name.", rich_help_panel=RECORDS),
]
JsonPath = Annotated[
    str | None,
    typer.Option(
        help="Where the array of records is in a .json document: a.b.item. "
        r"\[default: the top, or documents, data, records, items]",
        rich_help_panel=RECORDS,
    ),
]
IdField = Annotated[str, typer.Option(help="Key of the id.", rich_help_panel=RECORDS)]
TextField = Annotated[
    list[str] | None,
    typer.Option(help=r"Key of the text; several are joined. \[default: text]", rich_help_panel=RECORDS),
]
MetadataField = Annotated[
    str | None,
    typer.Option(
        help=r"Key of the metadata object. \[default: every other key, an object under metadata unfolded]",
        rich_help_panel=RECORDS,
    ),
]
MaxRecordBytes = Annotated[
    str, typer.Option(help="Reject records larger than this, unread.", rich_help_panel=RECORDS)
]
WhichDuplicate = Annotated[
    OnDuplicate,
    typer.Option(
        "--on-duplicate", help="Which of several records with one id is kept; error stops.", rich_help_panel=RECORDS
    ),
]
DeleteMissing = Annotated[
    bool | None,
    typer.Option(
        "--delete-missing/--keep-missing",
        envvar="RAGINGEST_DELETE_MISSING",
        help="Remove documents that have disappeared from the source, once all of it is read.",
        rich_help_panel=RUNNING,
    ),
]
MaxDelete = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MAX_DELETE",
        help=r"Refuse to remove more than this share of the documents. \[default: 30%]",
        rich_help_panel=RUNNING,
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Remove however many have disappeared.", rich_help_panel=RUNNING)
]
Embedder = Annotated[
    str,
    typer.Option(envvar="RAGINGEST_EMBEDDER", help=f"One of {', '.join(EMBEDDERS)}.", rich_help_panel=EMBEDDING),
]
MadeBy = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help=r"What made the vectors. \[default: what the collection says]",
        rich_help_panel=EMBEDDING,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MODEL",
        help=r"Model of an API, or for sentence-transformers a folder or a name. \[default: an API's usual one]",
        rich_help_panel=EMBEDDING,
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_BASE_URL",
        help="Of an embeddings API elsewhere: vLLM, TEI, Infinity, Ollama, Azure. Keys come from the environment.",
        rich_help_panel=EMBEDDING,
    ),
]
Dimensions = Annotated[
    int | None,
    typer.Option(help=r"Numbers in a vector. \[default: the embedder's]", rich_help_panel=EMBEDDING),
]
Device = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_DEVICE",
        help=r"For sentence-transformers: cpu, cuda, cuda:1, mps. \[default: a GPU if there is one]",
        rich_help_panel=EMBEDDING,
    ),
]
SplitLong = Annotated[
    bool, typer.Option("--chunk/--no-chunk", help="Split long documents.", rich_help_panel=EMBEDDING)
]
ChunkSize = Annotated[
    int, typer.Option(help="Tokens of the embedder in a chunk, at most.", rich_help_panel=EMBEDDING)
]
ChunkOverlap = Annotated[
    int, typer.Option(help="Tokens that neighbours share, at most.", rich_help_panel=EMBEDDING)
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate",
        help="With --no-chunk: embed the beginning of a text that is too long for the model.",
        rich_help_panel=EMBEDDING,
    ),
]
Store = Annotated[
    str, typer.Option(envvar="RAGINGEST_STORE", help=f"One of {', '.join(STORES)}.", rich_help_panel=STORING)
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="RAGINGEST_URL",
        help="Of the store's server: http://localhost:6333, postgresql://host/db. Keys come from the environment.",
        rich_help_panel=STORING,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_NAMESPACE", help="Part of the index, where there is one.", rich_help_panel=STORING
    ),
]
MetadataKeys = Annotated[
    str | None,
    typer.Option(help=r"Keep only these metadata keys: a,b,c. \[default: all]", rich_help_panel=STORING),
]
DropText = Annotated[
    bool, typer.Option("--drop-text", help="Keep the text out of the store.", rich_help_panel=STORING)
]
FlattenMetadata = Annotated[
    bool,
    typer.Option(
        "--flatten-metadata",
        help="Make metadata one level deep, for stores that take no more: a.b for nested keys.",
        rich_help_panel=STORING,
    ),
]
Bulk = Annotated[
    bool | None,
    typer.Option(
        "--bulk/--no-bulk",
        help="Index a new collection at the end instead of while loading.",
        rich_help_panel=STORING,
    ),
]
OnDisk = Annotated[
    bool | None,
    typer.Option("--on-disk/--in-memory", help="Keep a new collection's vectors on disk.", rich_help_panel=STORING),
]
Quantization = Annotated[
    Literal["scalar", "binary"] | None,
    typer.Option(help="Search a new collection by smaller vectors first.", rich_help_panel=STORING),
]
IndexMetadata = Annotated[
    str | None,
    typer.Option(
        help="Index these metadata keys of a new collection for filters: lang,year:integer.",
        rich_help_panel=STORING,
    ),
]
CheckpointDir = Annotated[
    Path,
    typer.Option(
        "--checkpoint-dir", envvar="RAGINGEST_CHECKPOINT_DIR", help="Folder of the jobs' state.", show_default=True
    ),
]
StorePath = Annotated[
    Path, typer.Option("--store-path", envvar="RAGINGEST_STORE_PATH", help="Folder of the embedded store.")
]
Collection = Annotated[
    str,
    typer.Option(
        "--collection",
        "--index",
        "-c",
        envvar="RAGINGEST_COLLECTION",
        help="Collection in the store; an index of Pinecone, a table of Postgres.",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_CONCURRENCY",
        help=r"Embedding calls at once. \[default: what the embedder advises]",
        rich_help_panel=RUNNING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_BATCH_SIZE",
        help=r"Chunks in an embedding call, at most. \[default: what the embedder takes]",
        rich_help_panel=RUNNING,
    ),
]
UpsertSize = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_UPSERT_SIZE",
        help=r"Points in an upsert, at most. \[default: what the store takes]",
        rich_help_panel=RUNNING,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MAX_MEMORY",
        help=r"Pause reading over this: 80% of the machine or container, or 2GiB of this process. \[default: 80%]",
        rich_help_panel=RUNNING,
    ),
]
MaxErrors = Annotated[
    str | None,
    typer.Option(
        envvar="RAGINGEST_MAX_ERRORS",
        help=r"Stop when more records than N, or than N% of at least 100 read, are rejected. \[default: 10%]",
        rich_help_panel=RUNNING,
    ),
]
CheckpointInterval = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_CHECKPOINT_INTERVAL",
        help=r"Seconds between checkpoints. \[default: 2]",
        rich_help_panel=RUNNING,
    ),
]
Rpm = Annotated[
    float | None,
    typer.Option(
        "--rpm",
        envvar="RAGINGEST_RPM",
        help=r"Requests a minute, at most. \[default: what the server says]",
        rich_help_panel=API,
    ),
]
Tpm = Annotated[
    float | None,
    typer.Option(
        "--tpm",
        envvar="RAGINGEST_TPM",
        help=r"Tokens a minute, at most. \[default: what the server says]",
        rich_help_panel=API,
    ),
]
MaxConcurrency = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_MAX_CONCURRENCY",
        help=r"Requests at once, at most; how many make sense is found out. \[default: 64]",
        rich_help_panel=API,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(envvar="RAGINGEST_TIMEOUT", help=r"Seconds for one request. \[default: 60]", rich_help_panel=API),
]
GiveUpAfter = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_GIVE_UP_AFTER",
        help=r"Stop after so many seconds of failure without a success. \[default: 600]",
        rich_help_panel=API,
    ),
]
PricePerMillion = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_PRICE_PER_MILLION",
        help=r"Dollars for a million tokens. \[default: the list price, if known]",
        rich_help_panel=API,
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_MAX_COST",
        help="Stop before the request that would make the run cost more dollars.",
        rich_help_panel=API,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        envvar="RAGINGEST_MAX_TOKENS",
        help="Stop before the request that would make the run use more tokens.",
        rich_help_panel=API,
    ),
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        envvar="RAGINGEST_WAIT",
        help=r"Wait for batches under way, or exit with 75 to be resumed later. \[default: wait]",
        rich_help_panel=API,
    ),
]
PollInterval = Annotated[
    float | None,
    typer.Option(
        envvar="RAGINGEST_POLL_INTERVAL",
        help=r"Seconds between the first two looks at batches; the pauses grow to 20 times that. \[default: 30]",
        rich_help_panel=API,
    ),
]
Spool = Annotated[
    bool | None,
    typer.Option(
        "--spool/--no-spool",
        envvar="RAGINGEST_SPOOL",
        help=r"Paid vectors are on disk until the store has them; without, a crash costs them again. \[default: spool]",
        rich_help_panel=API,
    ),
]
KeepEmbeddings = Annotated[
    bool | None,
    typer.Option(
        "--keep-embeddings/--no-keep-embeddings",
        envvar="RAGINGEST_KEEP_EMBEDDINGS",
        help=r"Keep paid vectors on disk for other runs, stores and jobs. \[default: until the store has them]",
        rich_help_panel=API,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="RAGINGEST_QUIET", help="No progress.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout, everything else on stderr.", rich_help_panel=OUTPUT),
]


def job_settings(
    *,
    source: str,
    text_field: list[str] | None,
    max_record_bytes: str,
    dimensions: int | None,
    metadata_keys: str | None,
    **given: Any,
) -> JobSettings:
    """The settings that a command line describes, with absolute paths.

    Raises:
        UsageError: a value makes no sense.
    """
    if dimensions is not None and dimensions < 1:
        raise UsageError(f"--dimensions {dimensions} is too small", "give at least 1")
    return absolute(
        JobSettings(
            source=source,
            text_fields=tuple(text_field or ["text"]),
            max_record_bytes=parse_size(max_record_bytes, "--max-record-bytes"),
            dimensions=dimensions,
            metadata_keys=None if metadata_keys is None else names(metadata_keys),
            **given,
        )
    )


def apply_options(options: RunOptions, **given: Any) -> RunOptions:
    """`options` with those values replaced that are given (not None), as the command line has them.

    Raises:
        UsageError: a value cannot be understood.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if "max_memory" in values:
        values["max_memory"] = MemoryLimit.parse(values["max_memory"])
    if "max_errors" in values:
        values["max_errors"] = ErrorBudget.parse(values["max_errors"])
    if "max_delete" in values:
        values["max_delete"] = _share(values["max_delete"])
    if "index_metadata" in values:
        values["index_metadata"] = names(values["index_metadata"])
    return msgspec.structs.replace(options, **values)


def _share(text: str) -> float:
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"--max-delete {text!r} is no percentage", "write for example 30%") from None


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(","))
