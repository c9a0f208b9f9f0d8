"""What a job is (`JobSettings`: kept, and compared when it is resumed) and how it runs (`RunOptions`: may change)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from ragingest.errors import UsageError

__all__ = [
    "BATCHED",
    "DEFAULT_CHUNK_OVERLAP",
    "DEFAULT_CHUNK_SIZE",
    "STDIN",
    "ErrorBudget",
    "JobSettings",
    "Layout",
    "MemoryLimit",
    "OnDuplicate",
    "RunOptions",
    "StoreSettings",
    "check_job_name",
    "default_job_name",
    "parse_size",
]

STDIN = "-"
DEFAULT_CHUNK_SIZE = 512
DEFAULT_CHUNK_OVERLAP = 64

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}").fullmatch
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps").fullmatch
_SECRET = re.compile(r"(?i)(password|passwd|key|token|secret)=")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE).fullmatch


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which store, and which collection of it."""

    store: str = "qdrant-edge"
    store_path: str = "ragingest_data"
    """Absolute folder of a store on this machine."""
    url: str | None = None
    """Of a server."""
    collection: str = "documents"
    """Collection, index or table."""
    namespace: str | None = None
    """Part of the collection, where a store has such a thing."""
    drop_text: bool = False
    """Keep the text out of the store: only vectors, ids and metadata go there."""

    @classmethod
    def parse(cls, text: str) -> StoreSettings:
        """`STORE:PLACE/COLLECTION#NAMESPACE`, with a folder or a URL as the place, or none.

        `qdrant-edge:ragingest_data/documents`, `qdrant:http://localhost:6333/docs`,
        `pgvector:postgresql://localhost/db/docs`, `pinecone:docs#v1`.

        Raises:
            UsageError: it is not of that form.
        """
        store, colon, rest = text.partition(":")
        rest, _, namespace = rest.partition("#")
        place, _, collection = rest.rpartition("/")
        if not (colon and store and collection):
            raise UsageError(
                f"{text!r} names no collection",
                "write STORE:PLACE/COLLECTION, for example qdrant:http://localhost:6333/docs",
            )
        settings = cls(store=store, collection=collection, namespace=namespace or None)
        if "://" in place:
            settings = msgspec.structs.replace(settings, url=place)
        elif place:
            settings = msgspec.structs.replace(settings, store_path=str(Path(place).absolute()))
        settings.check()
        return settings

    def __str__(self) -> str:
        """What `parse` reads."""
        place = self.url if self.url is not None else self.store_path
        name = f"{self.store}:{place}/{self.collection}"
        return f"{name}#{self.namespace}" if self.namespace else name

    def check(self) -> None:
        """Refuse settings that cannot work together.

        Raises:
            UsageError: says which flag, and what it takes.
        """
        _check_name(self.store_path)
        if self.url is not None:
            try:
                parts = urlsplit(self.url)
                usable = bool(parts.scheme and (parts.hostname or parts.path.strip("/"))) and parts.port != 0
            except ValueError:
                usable = False
            if not usable:
                raise UsageError(f"--url {self.url!r} is no URL", "write for example http://localhost:6333")
            # Only databases have users; elsewhere a key stands in their place.
            named = parts.username is not None and not parts.scheme.startswith("postgres")
            if parts.password is not None or named or _SECRET.search(parts.query):
                raise UsageError("--url holds a password or key", "put it into the environment (docs/stores.md)")
        if not _JOB_NAME(self.collection):
            raise UsageError(
                f"{self.collection!r} is not a collection name",
                "use letters, digits and . _ - (100 at most), starting with a letter or digit",
            )


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a store lays out a collection that it creates; a store names those it heeds in its abilities."""

    bulk: bool = False
    """Index nothing while loading, and everything at the end."""
    on_disk: bool = False
    """Keep the vectors on disk, and only their index in memory."""
    quantization: Literal["scalar", "binary"] | None = None
    index_metadata: tuple[str, ...] = ()
    """Metadata keys that searches filter by: `key`, or `key:integer` and the like."""


OnDuplicate = Literal["first", "last", "error"]
"""Which of several documents with one id a store ends up with."""


class JobSettings(StoreSettings, frozen=True, kw_only=True):
    """Everything that decides which points a job makes of its source, and where they go.

    The same settings over the same source give the same collection; so a checkpoint is continued
    only under the settings it was made with.
    """

    source: str
    """Absolute path, or `-` for standard input."""
    format: Literal["auto", "jsonl", "json", "store"] = "auto"
    """`store`: the source is a collection, as `StoreSettings.parse` reads it; its vectors are copied."""
    json_path: str | None = None
    id_field: str = "id"
    text_fields: tuple[str, ...] = ("text",)
    metadata_field: str | None = None
    metadata_keys: tuple[str, ...] | None = None
    """The only metadata keys that are kept; None: all."""
    on_duplicate: OnDuplicate = "last"
    flatten_metadata: bool = False
    """Nested objects become dotted keys, null goes, and lists become lists of strings."""
    max_record_bytes: int = 16 * 1024 * 1024
    embedder: str = "wordllama"
    model: str | None = None
    dimensions: int | None = None
    base_url: str | None = None
    """Of an embeddings API, if it is not the provider's own."""
    chunk: bool = True
    chunk_size: int = DEFAULT_CHUNK_SIZE
    chunk_overlap: int = DEFAULT_CHUNK_OVERLAP
    truncate: bool = False
    """Embed the beginning of a text that is over the model's limit, instead of rejecting it."""

    def check(self) -> None:
        """Refuse settings that cannot work together.

        Raises:
            UsageError: says which flag, and what it takes.
        """
        StoreSettings.check(self)
        _check_name(self.source)
        if self.source == STDIN and self.embedder in BATCHED:
            raise UsageError(
                f"--embedder {self.embedder} reads the source several times, which standard input does not allow",
                "write it to a file first",
            )
        if not self.text_fields or not all(self.text_fields):
            raise UsageError("no text field is named", "give --text-field NAME")
        if self.id_field in self.text_fields:
            raise UsageError(f'"{self.id_field}" cannot be both id and text', "change --id-field or --text-field")
        if self.base_url is not None and ("@" in self.base_url or _SECRET.search(self.base_url.partition("?")[2])):
            raise UsageError(
                "--base-url holds a user, password or key",
                "put the key into the environment (docs/api-embedding.md)",
            )
        if self.truncate and self.chunk:
            raise UsageError(
                "--truncate has nothing to cut where documents are split", "add --no-chunk, or leave it out"
            )
        if self.chunk_size < 8:
            raise UsageError(f"--chunk-size {self.chunk_size} is too small", "give at least 8 tokens")
        if not 0 <= self.chunk_overlap < self.chunk_size:
            raise UsageError(
                f"--chunk-overlap {self.chunk_overlap} does not fit --chunk-size {self.chunk_size}",
                "the overlap must be smaller than the chunk",
            )
        if self.max_record_bytes < 1024:
            raise UsageError("--max-record-bytes is too small", "give at least 1KiB")
        if self.metadata_keys is not None and not all(self.metadata_keys):
            raise UsageError("--metadata-keys holds an empty name", "give names with commas between them")

    @property
    def vectors_of(self) -> str:
        """The embedder whose vectors these are, whichever way they come."""
        return BATCHED.get(self.embedder, self.embedder)

    def _shaping(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "embedder": self.vectors_of}

    def fingerprint(self) -> str:
        """A digest of the settings that shape the points; equal fingerprints may continue each other."""
        shaping = {name: value for name, value in self._shaping().items() if name not in _NOT_SHAPING}
        return hashlib.blake2b(msgspec.json.encode(shaping, order="sorted"), digest_size=8).hexdigest()

    def changes(self, before: JobSettings) -> list[tuple[str, object, object]]:
        """(flag, value before, value now) of every shaping setting that differs."""
        old, new = before._shaping(), self._shaping()
        return [
            (flag_of(name), old[name], new[name])
            for name in new
            if name not in _NOT_SHAPING and old[name] != new[name]
        ]


BATCHED = {"openai-batch": "openai"}
"""Embedders that send texts by a batch API, and those that make the same vectors at once."""

_NOT_SHAPING = frozenset({"max_record_bytes"})

_FLAGS = {"source": "SOURCE", "text_fields": "--text-field", "chunk": "--chunk/--no-chunk"}


def flag_of(setting: str) -> str:
    """The command line's name for a field of `JobSettings`."""
    return _FLAGS.get(setting, "--" + setting.replace("_", "-"))


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {name.encode(errors='replace').decode()} is not UTF-8",
            "rename it, or give a symbolic link to it",
        ) from None


class ErrorBudget(msgspec.Struct, frozen=True):
    """How many records may be rejected before the run stops: a count, or a share of those read."""

    count: int | None = None
    share: float | None = 0.10
    at_least_read: int = 100

    def exceeded(self, rejected: int, read: int) -> bool:
        if self.count is not None:
            return rejected > self.count
        return self.share is not None and read >= self.at_least_read and rejected > self.share * read

    @classmethod
    def parse(cls, text: str) -> ErrorBudget:
        """`50`: fifty records; `2.5%`: a share of the records read, once 100 are.

        Raises:
            UsageError: it is neither.
        """
        try:
            if text.strip().endswith("%"):
                share = float(text.strip()[:-1]) / 100
                if not 0 <= share <= 1:
                    raise ValueError
                return cls(share=share)
            count = int(text)
            if count < 0:
                raise ValueError
        except ValueError:
            raise UsageError(f"--max-errors {text!r} is not a number or a percentage", "write 100 or 5%") from None
        return cls(count=count, share=None)

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{100 * (self.share or 0):g}%"


class MemoryLimit(msgspec.Struct, frozen=True):
    """Where reading pauses: a share of the machine's or container's memory, or bytes of this process."""

    share: float | None = 0.80
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> MemoryLimit:
        """`80` or `80%`: of what the machine or the container has in use; `2GiB`: of this process.

        Raises:
            UsageError: it is neither.
        """
        number = text.strip().removesuffix("%")
        try:
            percent = float(number)
        except ValueError:
            return cls(share=None, bytes=parse_size(text, "--max-memory"))
        if not 1 <= percent <= 100:
            raise UsageError(
                f"--max-memory {text!r} is not a percentage from 1 to 100", "write 80% of the machine, or 2GiB"
            )
        return cls(share=percent / 100)

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share is not None else f"{self.bytes}B"


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a run goes about its work: safe to change from one run to the next."""

    concurrency: int | None = None
    """Embedding calls at once; None: what the embedder advises."""
    device: str = "auto"
    """What an embedder in this process computes on: auto, cpu, cuda, cuda:N, mps."""
    batch_size: int | None = None
    """Chunks in an embedding call; None: what the embedder takes."""
    upsert_size: int | None = None
    """Points in an upsert; None: what the store takes."""
    max_memory: MemoryLimit = MemoryLimit()
    max_errors: ErrorBudget = ErrorBudget()
    rpm: float | None = None
    """Requests a minute to an embeddings API; None: what the server says."""
    tpm: float | None = None
    """Tokens a minute, likewise."""
    max_concurrency: int = 64
    """Requests to an embeddings API at once, at most; how many make sense is found out."""
    timeout: float = 60.0
    """Seconds for one request."""
    give_up_after: float = 600.0
    """Seconds of failure without a success until the run stops."""
    price_per_million: float | None = None
    """Dollars for a million tokens; None: the list price, if it is known."""
    max_cost: float | None = None
    max_tokens: int | None = None
    wait: bool = True
    """Wait for batches that are under way; else end after one pass, to be resumed."""
    poll_interval: float = 30.0
    """Seconds between the first two looks at batches under way; the pauses grow to twenty times that."""
    spool: bool = True
    """Paid vectors are on disk until the store has confirmed them."""
    keep_embeddings: bool = False
    """Keep paid vectors for other runs and jobs, instead of until the store has them."""
    delete_missing: bool = False
    """Remove documents that have disappeared from the source."""
    max_delete: float = 0.30
    """The share of the documents that may be removed without being confirmed."""
    bulk: bool = False
    on_disk: bool = False
    quantization: Literal["scalar", "binary"] | None = None
    index_metadata: tuple[str, ...] = ()
    """These four make the `Layout` of a collection that is created."""
    checkpoint_interval: float = 2.0
    """Seconds between checkpoints, unless saving takes longer than a thirtieth of that."""

    @property
    def layout(self) -> Layout:
        return Layout(
            bulk=self.bulk,
            on_disk=self.on_disk,
            quantization=self.quantization,
            index_metadata=self.index_metadata,
        )

    def check(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UsageError: says which flag, and what it takes.
        """
        for flag, value in (
            ("--concurrency", self.concurrency),
            ("--batch-size", self.batch_size),
            ("--upsert-size", self.upsert_size),
            ("--max-concurrency", self.max_concurrency),
            ("--max-tokens", self.max_tokens),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} is too small", "give at least 1")
        for flag, budget in (("--rpm", self.rpm), ("--tpm", self.tpm)):
            if budget is not None and not budget >= 1:
                raise UsageError(f"{flag} {budget:g} is too small", "give at least 1 a minute")
        for flag, number in (
            ("--timeout", self.timeout),
            ("--give-up-after", self.give_up_after),
            ("--max-cost", self.max_cost),
            ("--poll-interval", self.poll_interval),
        ):
            if number is not None and not number > 0:
                raise UsageError(f"{flag} {number:g} is too small", "give a positive number")
        if self.price_per_million is not None and not self.price_per_million >= 0:
            raise UsageError("--price-per-million is negative", "give dollars for a million tokens")
        if not 0 <= self.max_delete <= 1:
            raise UsageError("--max-delete is no percentage from 0 to 100", "write for example 30%")
        if not _DEVICE(self.device):
            raise UsageError(f"--device {self.device!r} is none", "give auto, cpu, cuda, cuda:1 or mps")
        if not 0 < self.checkpoint_interval <= 3600:
            raise UsageError("--checkpoint-interval must lie between 0 and 3600 seconds")


def parse_size(text: str, flag: str) -> int:
    """Bytes of `2GiB`, `16MB`, `4096`: decimal units by 1,000, those with an i by 1,024.

    Raises:
        UsageError: it is not a size.
    """
    match = _SIZE(text)
    if not match:
        raise UsageError(f"{flag} {text!r} is not a size", "write for example 512MB or 2GiB")
    number, unit, binary = match.groups()
    size = float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " ")
    if not 1 <= size < 1 << 63:
        raise UsageError(f"{flag} {text!r} is out of range", "write for example 512MB or 2GiB")
    return int(size)


def check_job_name(name: str) -> str:
    """Return `name` if it may name files; a job cannot leave the checkpoint folder.

    Raises:
        UsageError: it may not.
    """
    if not _JOB_NAME(name):
        raise UsageError(
            f"{name!r} is not a job name",
            "use letters, digits and . _ - (100 at most), starting with a letter or digit",
        )
    return name


def default_job_name(settings: JobSettings) -> str:
    """A name made from source, store and collection, so that the same command finds the same job."""
    place = settings.url or settings.store_path
    identity = f"{settings.source}\0{settings.store}\0{place}\0{settings.collection}"
    if settings.namespace is not None:
        identity += f"\0{settings.namespace}"
    stem = "stdin" if settings.source == STDIN else Path(settings.source).name.split(".")[0]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:40] or "job"
    return f"{stem}-{settings.collection[:40]}-{hashlib.blake2b(identity.encode(), digest_size=3).hexdigest()}"
