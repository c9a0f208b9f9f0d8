"""What a run would do and cost, found out by reading the source alone: nothing is sent, nothing written.

Records, rejects and chunks are counted by the same source, decoder and chunker that a run uses, so
they are exact unless only a sample is read. Tokens are counted where a tokenizer is at hand and
estimated from bytes otherwise. Ids are not compared: documents that a run would pass over as duplicates or as
unchanged count as new ones. Memory does not grow with the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ragingest.batching import calculate_batch_size
from ragingest.chunking import Chunker, EstimatingChunker, whole
from ragingest.costs.models import DEFAULT_MODELS, ModelFacts, facts_of
from ragingest.costs.tokens import TextSize, TokenEstimator, exact_counter, measure
from ragingest.decoding import Decoder, FieldMapping
from ragingest.documents import TEXT_DIGEST_BYTES, Chunk, Document, EmbeddedBatch, Fault, Record, Vectors
from ragingest.embedders import EMBEDDERS, open_embedder
from ragingest.embedders.bm25 import BM25
from ragingest.errors import ExitCode, RejectedError, UsageError
from ragingest.protocols import Source, Store, StoreLimits
from ragingest.settings import BATCHED, JobSettings, RunOptions
from ragingest.sources import open_source
from ragingest.stores import open_store
from ragingest.stores.abilities import check_abilities, shortcomings

__all__ = ["Plan", "PlanOptions", "Watch", "make_plan"]

LEDGER_BYTES = 60
"""An entry of the ledger on disk, with what its file leaves empty."""

COUNTED_BYTES = 4_000_000
"""So much text is counted exactly, where that can be done; the rest at the ratio found."""

LEAST_COMPRESSED_BYTES = 1_000_000
"""A sample of a compressed file has at least these, so that what the decompressor holds back is a small part."""

TOO_LONG = "too_many_tokens"
"""What a run says of texts over the embedder's limit, or so long that they may well be over it."""

PACKED = 0.92
"""How full of tokens requests get where they are packed by a learned ratio."""

LOCAL_EMBEDDERS = ("wordllama", "null", "sentence-transformers")

Split = Callable[[list[Document]], list[list[Chunk]]]
Watch = Callable[[int, int | None, int], None]
"""Is told, after each block, the bytes read of the file, its size if that is known, and the records read."""


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the run would go about its work, and what the plan cannot know by itself."""

    run: RunOptions = RunOptions()
    sample: int | None = None
    """Read only so many records, and scale up by the bytes of the file."""
    throughput: float | None = None
    """Texts that the embedder takes a second."""

    def check(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UsageError: says which flag, and what it takes.
        """
        self.run.check()
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"--sample {self.sample} is too small", "give at least 1")
        if self.throughput is not None and not 0 < self.throughput < math.inf:
            raise UsageError(f"--throughput {self.throughput:g} makes no sense", "give texts a second")


class Plan(msgspec.Struct, kw_only=True):
    """Everything that can be said before the run. None: unknown."""

    source: str
    embedder: str
    model: str
    dimensions: int | None
    store: str
    read: int
    """Records that were read for this plan."""
    read_share: float | None
    """Their part of the source; None if its size is not known. All counts below are scaled by it."""
    records: int
    rejected: int
    reject_kinds: dict[str, int]
    documents: int
    chunks: int
    truncated: int
    """Chunks of which only the beginning is embedded."""
    text_bytes: int
    tokens: int
    tokens_exact: bool
    tokens_at_most: int
    requests: int
    requests_at_most: int
    """If each byte were a token."""
    batches: int | None
    """Of a batch API, each a file of requests for one text."""
    batch_file_bytes: int | None
    """Of these files; JSON's escapes in the texts are not counted."""
    price_per_million: float | None
    price_source: str | None
    """Where the list price stands, and when it was read there; None if it was given or is unknown."""
    dollars: float | None
    """At list price, for `tokens`."""
    dollars_at_most: float | None
    """For `tokens_at_most`."""
    batch_dollars: float | None
    """Through the provider's batch API, where `dollars` are not for that."""
    upserts: int | None
    points_per_upsert: int | None
    bytes_per_upsert: int | None
    seconds_at_best: float | None
    bounded_by: str | None
    """Which of rpm, tpm and throughput decides that time."""
    vector_bytes: int | None
    payload_bytes: int
    ledger_bytes: int
    disk_bytes: int | None
    notes: list[str]
    exit_code: int


def make_plan(
    settings: JobSettings, options: PlanOptions, watch: Watch = lambda _bytes, _total, _records: None
) -> Plan:
    """Read the source, or a sample of it, and work out what a run over it would take.

    Raises:
        UsageError: settings that make no sense, or a missing package.
        TerminalError: the source cannot be read.
    """
    settings.check()
    options.check()
    embedding = _embedding(settings, options)
    store = _store(settings)
    source = open_source(settings)
    try:
        check_abilities(store, options.run.layout)
        tally = _Tally(settings, embedding, store)
        reader = _Reader(source, options.sample)
        for records in reader:
            tally.take(records)
            watch(reader.progress, source.total_bytes, tally.records)
        return _plan(settings, options, embedding, store, source, reader, tally)
    finally:
        source.close()
        store.close()


# -- the parts that are not opened -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Embedding:
    """What an embedder takes, without the embedder: no key is needed."""

    model: str
    dimensions: int | None
    max_inputs: int
    max_bytes: int | None
    max_tokens: int | None
    max_input_tokens: int | None
    price: float | None
    batch_price: float | None
    price_source: str | None
    special_tokens: int
    split: Split
    count: Callable[[str], int] | None
    line_bytes: int | None = None
    """Of a batch API: what stands around a text in its line of a file."""


def _embedding(settings: JobSettings, options: PlanOptions) -> _Embedding:
    name = settings.embedder
    if name in LOCAL_EMBEDDERS or name not in (*EMBEDDERS, *DEFAULT_MODELS):
        return _local(settings, options)
    model = settings.model or DEFAULT_MODELS.get(name)
    if model is None:
        raise UsageError(f"--embedder {name} needs a model", "give --model NAME")
    facts = facts_of(name, model)
    if settings.dimensions is not None:
        facts.check_dimensions(settings.dimensions)
    split: Split = whole
    if settings.chunk:
        split = EstimatingChunker(settings.chunk_size, settings.chunk_overlap, facts.max_input_tokens).split
    price, batch_price = _prices(name, facts, options.run.price_per_million)
    if name in BATCHED:
        return _batched(settings, options, facts, price, split)
    return _Embedding(
        model=model,
        dimensions=settings.dimensions or facts.dimensions,
        max_inputs=min(options.run.batch_size or facts.max_inputs, facts.max_inputs),
        max_bytes=None,
        max_tokens=facts.max_request_tokens,
        max_input_tokens=facts.max_input_tokens,
        price=price,
        batch_price=batch_price,
        price_source=_price_source(facts, options),
        special_tokens=facts.special_tokens,
        split=split,
        count=exact_counter(model),
    )


def _batched(
    settings: JobSettings, options: PlanOptions, facts: ModelFacts, price: float | None, split: Split
) -> _Embedding:
    from ragingest.embedders.openai_batch import MAX_BYTES, MAX_TEXTS, line_of

    return _Embedding(
        model=facts.name,
        dimensions=settings.dimensions or facts.dimensions,
        max_inputs=min(options.run.batch_size or MAX_TEXTS, MAX_TEXTS),
        max_bytes=MAX_BYTES,
        max_tokens=None,
        max_input_tokens=facts.max_input_tokens,
        price=price,
        batch_price=None,
        price_source=_price_source(facts, options),
        special_tokens=facts.special_tokens,
        split=split,
        count=exact_counter(facts.name),
        line_bytes=len(line_of(bytes(TEXT_DIGEST_BYTES), "", facts.name, settings.dimensions)),
    )


def _local(settings: JobSettings, options: PlanOptions) -> _Embedding:
    embedder = open_embedder(
        settings.embedder,
        settings.dimensions,
        model=settings.model,
        device=options.run.device,
        max_texts=options.run.batch_size,
        download=False,
    )
    try:
        tokenizer, limits = embedder.tokenizer, embedder.limits
        split: Split = whole
        if settings.chunk and tokenizer is not None:
            most = limits.max_tokens_per_text
            split = Chunker(tokenizer, settings.chunk_size, settings.chunk_overlap, most).split
        return _Embedding(
            model=embedder.model,
            dimensions=embedder.dimensions,
            max_inputs=min(options.run.batch_size or limits.max_texts, limits.max_texts),
            max_bytes=limits.max_bytes,
            max_tokens=None,
            max_input_tokens=limits.max_tokens_per_text,
            price=options.run.price_per_million or 0.0,
            batch_price=None,
            price_source=None,
            special_tokens=0,
            split=split,
            count=(lambda text: len(tokenizer.encode([text])[0])) if tokenizer is not None else None,
        )
    finally:
        embedder.close()


def _prices(embedder: str, facts: ModelFacts, given: float | None) -> tuple[float | None, float | None]:
    if given is not None:
        return given, None
    if embedder in LOCAL_EMBEDDERS:
        return 0.0, None
    if embedder in BATCHED:
        return facts.batch_price_per_million, None
    return facts.price_per_million, facts.batch_price_per_million


def _price_source(facts: ModelFacts, options: PlanOptions) -> str | None:
    if options.run.price_per_million is not None or facts.price_per_million is None:
        return None
    return f"{facts.source}, {facts.date}"


def _store(settings: JobSettings) -> Store:
    """The store, which is not prepared: it makes no folder and sends nothing.

    Raises:
        UsageError: there is no such store, or a package is missing.
    """
    if settings.store == "qdrant-edge":
        from ragingest.stores.qdrant_edge import QdrantEdgeStore

        return QdrantEdgeStore(Path(settings.store_path), settings.collection)  # without a process of its own
    return open_store(settings)


# -- reading -----------------------------------------------------------------------------------------


class _Reader:
    """The records of a source by blocks, up to a sample; afterwards, what share of the source they are."""

    def __init__(self, source: Source, sample: int | None) -> None:
        self._source = source
        self._sample = sample
        self.progress = 0
        self.complete = False
        self._offset: int | None = None

    def __iter__(self) -> Iterator[list[Record]]:
        read = 0
        while (block := self._source.read_block()) is not None:
            records = block.records
            left = None if self._sample is None else self._sample - read
            if left is not None and self._source.rereads and self._source.total_bytes is not None:
                # Where in a compressed file a record is, is only known roughly, between two reads of the file.
                if left <= 0 and block.progress > self.progress >= LEAST_COMPRESSED_BYTES:
                    return
            elif left is not None and len(records) >= left:
                self._offset = records[left].offset if len(records) > left else block.end_offset
                self.progress = block.progress
                yield records[:left]
                return
            read += len(records)
            self.progress = block.progress
            yield records
        self.complete = True

    @property
    def share(self) -> float | None:
        """The part of the source that was read, by its bytes; None if it has no known size."""
        total = self._source.total_bytes
        if self.complete or total == 0:
            return 1.0
        if total is None:
            return None
        return min(1.0, (self.progress if self._offset is None else self._offset) / total)


class _Requests:
    """Counts the requests that texts fill, in order."""

    def __init__(self, max_inputs: int, max_tokens: float, max_bytes: int | None) -> None:
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._inputs = 0
        self._tokens = 0
        self._bytes = 0
        self.count = 0

    def add(self, tokens: int, bytes_: int) -> None:
        self._inputs += 1
        self._tokens += tokens
        self._bytes += bytes_
        over = self._inputs > self._max_inputs
        over = over or self._tokens > self._max_tokens or self._bytes > self._max_bytes
        if over or self.count == 0:
            self.count += 1
            self._inputs, self._tokens, self._bytes = 1, tokens, bytes_

    def scaled(self, scale: float) -> int:
        """The count for `scale` times as many texts, where the last request is only as full as it is."""
        if scale == 1 or self.count == 0:
            return self.count
        last = max(self._inputs / self._max_inputs, self._tokens / self._max_tokens, self._bytes / self._max_bytes)
        return math.ceil((self.count - 1 + min(1.0, last)) * scale)


class _Piece(NamedTuple):
    """A text to embed: its size, the tokens that it likely has, and whether that number is exact."""

    size: TextSize
    tokens: int
    exact: bool


class _Tally:
    """Adds up what records would make."""

    def __init__(self, settings: JobSettings, embedding: _Embedding, store: Store) -> None:
        self._decoder = Decoder(FieldMapping.of(settings))
        self._embedding = embedding
        self._store = store
        self._takes_batches = False
        """The store encodes no single points."""
        self._bm25 = BM25() if store.abilities.sparse else None
        self._estimator = TokenEstimator(embedding.special_tokens)
        filled = 1.0 if embedding.count is not None else PACKED
        most = math.inf if embedding.max_tokens is None else embedding.max_tokens
        self.likely = _Requests(embedding.max_inputs, filled * most, embedding.max_bytes)
        self.at_most = _Requests(embedding.max_inputs, most, embedding.max_bytes)
        self.records = 0
        self.reject_kinds: dict[str, int] = {}
        self.documents = 0
        self.chunks = 0
        self.truncated = 0
        self._truncate = settings.truncate
        self.text_bytes = 0
        self.payload_bytes = 0
        self.wire_bytes: int | None = None
        """Of all points as the store will send them, if it has such a thing."""
        self.tokens = 0
        self.tokens_at_most = 0
        self.uncounted = 0
        self._counted_bytes = 0

    def take(self, records: list[Record]) -> None:
        documents = []
        for record in records:
            try:
                documents.append(self._decoder.decode(record))
            except RejectedError as error:
                self.reject_kinds[error.kind] = self.reject_kinds.get(error.kind, 0) + 1
        self.records += len(records)
        split = self._embedding.split(documents)
        faults = self._encode([chunk for chunks in split for chunk in chunks])
        for document, chunks in zip(documents, split, strict=True):
            pieces = [self._piece(chunk) for chunk in chunks]
            too_long = sum(map(self._too_long, pieces))
            kind = TOO_LONG if too_long and not self._truncate else faults.get(id(document))
            if kind is not None:
                self.reject_kinds[kind] = self.reject_kinds.get(kind, 0) + 1
                continue
            self.documents += 1
            self.truncated += too_long
            # What stands in the store beside the text: id and metadata, as they are in the record.
            around = max(0, len(document.record.raw) - len(document.text.encode()))
            for piece in pieces:
                self._add(piece, around)

    def _encode(self, chunks: list[Chunk]) -> dict[int, str]:
        """Let the store encode the points, with vectors of noise; by document, why it cannot keep some."""
        if self._takes_batches or not chunks or self._embedding.dimensions is None:
            return {}
        dense = np.tile(_noise(self._embedding.dimensions), (len(chunks), 1))
        sparse = None if self._bm25 is None else self._bm25.encode([chunk.text for chunk in chunks])
        faults: dict[int, str] = {}
        encoded = self._store.encode(EmbeddedBatch(chunks, dense, sparse))
        if encoded is None:
            self._takes_batches = True
            return {}
        for chunk, point in zip(chunks, encoded, strict=True):
            if isinstance(point, Fault):
                faults[id(chunk.document)] = point.kind
            else:
                self.wire_bytes = (self.wire_bytes or 0) + len(point)
        return faults

    def _too_long(self, piece: _Piece) -> bool:
        limit = self._embedding.max_input_tokens
        if limit is None:
            return False
        return piece.tokens > limit if piece.exact else self._estimator.doubtful(piece.size, limit)

    def _piece(self, chunk: Chunk) -> _Piece:
        size = measure(chunk.text)
        counted: int | None = None
        if chunk.tokens is not None:
            counted = len(chunk.tokens)
        elif self._embedding.count is not None and self._counted_bytes < COUNTED_BYTES:
            counted = self._embedding.count(chunk.text)
        if counted is None:
            self.uncounted += 1
            return _Piece(size, self._estimator.estimate(size.bytes, wide=size.wide), exact=False)
        self._counted_bytes += size.bytes
        tokens = counted + self._embedding.special_tokens
        self._estimator.learn(size.bytes, tokens)
        return _Piece(size, tokens, exact=True)

    def _add(self, piece: _Piece, around: int) -> None:
        bytes_ = piece.size.bytes
        bound = self._estimator.bound(bytes_)
        limit = self._embedding.max_input_tokens
        if self._truncate and limit is not None:
            piece, bound = piece._replace(tokens=min(piece.tokens, limit)), min(bound, limit)
        self.chunks += 1
        self.text_bytes += bytes_
        self.payload_bytes += bytes_ + around
        self.tokens += piece.tokens
        self.tokens_at_most += bound
        sent = bytes_ + (self._embedding.line_bytes or 0)
        self.likely.add(piece.tokens, sent)
        self.at_most.add(bound, sent)


# -- the sums ----------------------------------------------------------------------------------------


def _plan(
    settings: JobSettings,
    options: PlanOptions,
    embedding: _Embedding,
    store: Store,
    source: Source,
    reader: _Reader,
    tally: _Tally,
) -> Plan:
    limits = store.limits
    share = reader.share
    scale = 1 / share if share else 1.0

    def scaled(number: float) -> int:
        return round(number * scale)

    def dollars(tokens: int, price: float | None) -> float | None:
        return None if price is None else round(tokens * price / 1_000_000, 6)

    rejected = sum(tally.reject_kinds.values())
    chunks = scaled(tally.chunks)
    exact = tally.uncounted == 0 and share == 1.0
    tokens, at_most = scaled(tally.tokens), scaled(tally.tokens_at_most)
    at_most = tokens if exact else max(tokens, at_most)
    requests, most_requests = tally.likely.scaled(scale), tally.at_most.scaled(scale)
    batches = batch_file_bytes = None
    if embedding.line_bytes is not None:
        batches, requests, most_requests = requests, chunks, chunks
        batch_file_bytes = scaled(tally.text_bytes + embedding.line_bytes * tally.chunks)
    documents, payload = scaled(tally.documents), scaled(tally.payload_bytes)
    if tally.wire_bytes is None:
        points, upsert_bytes = _upsert(embedding, limits, options, chunks, payload)
    else:
        points, upsert_bytes = _upsert_of(tally.wire_bytes / max(1, tally.chunks), limits, options, chunks)
    vectors = None if embedding.dimensions is None else 4 * embedding.dimensions * chunks
    ledger = LEDGER_BYTES * documents
    seconds, bounded_by = _time(options, requests, tokens, chunks) if batches is None else (None, None)
    return Plan(
        source=source.name,
        embedder=settings.embedder,
        model=embedding.model,
        dimensions=embedding.dimensions,
        store=settings.store,
        read=tally.records,
        read_share=share,
        records=scaled(tally.records),
        rejected=scaled(rejected),
        reject_kinds={kind: scaled(count) for kind, count in sorted(tally.reject_kinds.items())},
        documents=documents,
        chunks=chunks,
        truncated=scaled(tally.truncated),
        text_bytes=scaled(tally.text_bytes),
        tokens=tokens,
        tokens_exact=exact,
        tokens_at_most=at_most,
        requests=requests,
        requests_at_most=requests if exact else max(requests, most_requests),
        batches=batches,
        batch_file_bytes=batch_file_bytes,
        price_per_million=embedding.price,
        price_source=embedding.price_source,
        dollars=dollars(tokens, embedding.price),
        dollars_at_most=dollars(at_most, embedding.price),
        batch_dollars=dollars(tokens, embedding.batch_price),
        upserts=None if points is None else math.ceil(chunks / points),
        points_per_upsert=points,
        bytes_per_upsert=upsert_bytes,
        seconds_at_best=seconds,
        bounded_by=bounded_by,
        vector_bytes=vectors,
        payload_bytes=payload,
        ledger_bytes=ledger,
        disk_bytes=None if vectors is None else vectors + payload + ledger,
        notes=[*shortcomings(store), *_notes(embedding, reader, exact)],
        exit_code=int(ExitCode.REJECTS if rejected else ExitCode.OK),
    )


def _upsert(
    embedding: _Embedding, limits: StoreLimits, options: PlanOptions, chunks: int, payload: int
) -> tuple[int | None, int | None]:
    """Points in an upsert, and its bytes."""
    if embedding.dimensions is None:
        return None, None
    most = min(options.run.upsert_size or limits.max_points, limits.max_points)
    around = payload / chunks if chunks else 0.0
    points = most
    if limits.max_bytes is not None:
        points = calculate_batch_size(
            embedding.dimensions, around, max_request_mb=limits.max_bytes / 1e6, max_count=most
        )
    return points, math.ceil(min(points, chunks) * (4 * embedding.dimensions + around))


def _upsert_of(point_bytes: float, limits: StoreLimits, options: PlanOptions, chunks: int) -> tuple[int, int]:
    """Points in an upsert, and its bytes, where the store has encoded the points."""
    points = min(options.run.upsert_size or limits.max_points, limits.max_points)
    if limits.max_bytes is not None:
        points = max(1, min(points, int(limits.max_bytes // max(1.0, point_bytes))))
    return points, math.ceil(min(points, chunks) * point_bytes)


def _noise(dimensions: int) -> Vectors:
    """A vector as long as real ones where numbers are written as text."""
    vector = np.random.default_rng(0).standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _time(options: PlanOptions, requests: int, tokens: int, chunks: int) -> tuple[float | None, str | None]:
    """The least time that the given rates allow, and which of them decides it."""
    times = {
        name: amount / rate * minute
        for name, amount, rate, minute in (
            ("rpm", requests, options.run.rpm, 60),
            ("tpm", tokens, options.run.tpm, 60),
            ("throughput", chunks, options.throughput, 1),
        )
        if rate is not None
    }
    if not times:
        return None, None
    slowest = max(times, key=lambda name: times[name])
    return round(times[slowest], 3), slowest


def _notes(embedding: _Embedding, reader: _Reader, exact: bool) -> list[str]:
    notes = []
    if reader.share is None:
        notes.append(
            "only a sample of a stream was read, whose size is not known: the numbers are those of the sample"
        )
    elif reader.share < 1:
        notes.append("all numbers are estimates, scaled up from a sample of the beginning by its bytes")
    if not exact and embedding.price != 0:
        notes.append(
            "tokens are estimated from bytes"
            if embedding.count is None
            else f"tokens are counted in the first {COUNTED_BYTES // 1_000_000} MB of text and estimated from there"
        )
    if embedding.price_source is not None:
        notes.append(f"the price is the one listed at {embedding.price_source}")
    notes.append("ids are not compared: duplicates and unchanged documents are counted as new ones")
    return notes
