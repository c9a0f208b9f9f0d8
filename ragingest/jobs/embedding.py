"""How the pipeline reaches an embedder: in threads, or over the wire; and what it must know of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragingest.batching import StreamingBatcher
from ragingest.chunking import Chunker, EstimatingChunker, whole
from ragingest.costs.books import Books
from ragingest.costs.models import DEFAULT_MODELS, ModelFacts, facts_of
from ragingest.costs.tokens import RequestPacker, TokenEstimator, exact_counter, measure
from ragingest.documents import Chunk, EmbeddedBatch, Vectors
from ragingest.embedders import APIS, open_api, open_batch_api, open_embedder
from ragingest.embedders.bm25 import BM25
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.events import Emit, Noticed
from ragingest.passes import Later
from ragingest.pipeline import Embed, Packer, Split
from ragingest.protocols import Embedder, Query, StoredPoint
from ragingest.settings import BATCHED, JobSettings, RunOptions

if TYPE_CHECKING:
    from ragingest.checkpoint.vectors import PaidVectors
    from ragingest.embedders.remote import RemoteLimits

__all__ = ["Embedding", "embed_query", "open_embedding"]

Fetch = Callable[[Sequence[tuple[str, int]]], list[StoredPoint]]

PROBE = "dimensions"
SEARCH_TIMEOUT = 60.0
CACHE = "embeddings"

READERS = 2
"""Batches of vectors that are read from disk at once."""

READ_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedder as the pipeline uses it."""

    name: str
    model: str
    dimensions: int
    sparse: bool
    concurrency: int
    """Batches at once, at most."""
    room: Callable[[], int] | None
    """How many make sense now; None: all."""
    split: Split
    packer: Packer
    embed: Embed
    embedded: Callable[[Sequence[Chunk]], Awaitable[None]]
    sync: Callable[[], None]
    """Makes what was paid for survive a loss of power; called at the checkpoint's pace."""
    aclose: Callable[[], Coroutine[Any, Any, None]]
    when_room: Callable[[Callable[[], None]], None] = lambda _tell: None
    """Takes what is to be called when there is more room, though no batch has come to its end."""
    later: Later | None = None
    """If vectors come hours after their texts were sent: what is done between passes over the source."""


def open_embedding(
    settings: JobSettings,
    options: RunOptions,
    books: Books,
    vectors: Path,
    emit: Emit,
    *,
    batches: Path,
    counted: Path,
    run: int,
    begun: bool,
    sparse: bool = True,
    fetch: Fetch | None = None,
) -> Embedding:
    """The embedder of a job, ready to be used.

    Args:
        batches: where the batches of a batch API are kept in mind.
        counted: where the books are kept as of the last request.
        run: the run's number; `begun` if this is not its first attempt.
        sparse: make sparse vectors too, because the store keeps them.
        books: is counted into.
        vectors: where paid vectors are kept until they are stored; the name of their files begins with it.
            Those that are kept for other jobs go into the same folder.
        fetch: reads what the store has, as `Store.fetch`; None if it keeps nothing.

    Raises:
        UsageError: there is no such embedder, or a package or a key is missing.
        TerminalError: an API does not answer when it is asked for its dimensions.
    """
    if settings.embedder in BATCHED:
        return _batched(settings, options, books, vectors, emit, batches, run, begun=begun, sparse=sparse)
    if batches.exists():
        emit(Noticed("this run does not wait for the batches that are under way: their texts are bought again"))
    if settings.embedder in APIS:
        return _remote(
            settings, options, books, counted, vectors, emit, sparse=sparse, run=run, begun=begun, fetch=fetch
        )
    return _local(settings, options, books, emit, sparse=sparse)


def embed_query(name: str, model: str, base_url: str | None, dimensions: int, text: str) -> Query:
    """Embed a search text as the documents of a collection were.

    Raises:
        RagingestError: the embedder cannot be opened or does not answer.
    """
    if name not in APIS:
        embedder = open_embedder(name, dimensions, model=model)
        try:
            return embedder.embed_query(text)
        finally:
            embedder.close()
    facts = facts_of(name, model)
    asked = dimensions if facts.shortenable and facts.dimensions not in (None, dimensions) else None
    ask = partial(_ask, timeout=SEARCH_TIMEOUT, give_up_after=SEARCH_TIMEOUT, books=Books(), query=True)
    vector = ask(name, model, base_url, asked, text)
    if len(vector) != dimensions and facts.dimensions is None:
        # The collection was made with --dimensions, of a model whose own number is not known.
        vector = ask(name, model, base_url, dimensions, text)
    return Query(vector, BM25().encode_query(text))


def _local(settings: JobSettings, options: RunOptions, books: Books, emit: Emit, *, sparse: bool) -> Embedding:
    def truncated(count: int) -> None:
        books.truncated += count

    embedder: Embedder = open_embedder(
        settings.embedder,
        settings.dimensions,
        model=settings.model,
        device=options.device,
        max_texts=options.batch_size,
        sparse=sparse,
        say=lambda sentence: emit(Noticed(sentence)),
        tell_truncated=truncated if settings.truncate else None,
    )
    limits = embedder.limits
    concurrency = options.concurrency or limits.concurrency
    if concurrency > 1:
        # Batches are tokenised side by side; splitting each over all cores as well costs half as much again.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    threads = ThreadPoolExecutor(concurrency, "embed")
    split: Split = whole
    if settings.chunk and embedder.tokenizer is not None:
        split = Chunker(
            embedder.tokenizer, settings.chunk_size, settings.chunk_overlap, limits.max_tokens_per_text
        ).split
    size = min(options.batch_size or limits.max_texts, limits.max_texts)

    async def embed(chunks: list[Chunk]) -> EmbeddedBatch:
        return await asyncio.get_running_loop().run_in_executor(threads, embedder.embed, chunks)

    async def embedded(_chunks: Sequence[Chunk]) -> None:
        pass

    async def aclose() -> None:
        threads.shutdown(cancel_futures=True)
        embedder.close()

    return Embedding(
        name=embedder.name,
        model=embedder.model,
        dimensions=embedder.dimensions,
        sparse=embedder.sparse,
        concurrency=concurrency,
        room=None,
        split=split,
        packer=StreamingBatcher(size, limits.max_bytes, lambda chunk: chunk.size),
        embed=embed,
        embedded=embedded,
        sync=lambda: None,
        aclose=aclose,
    )


def _remote(
    settings: JobSettings,
    options: RunOptions,
    books: Books,
    counted: Path,
    vectors: Path,
    emit: Emit,
    *,
    sparse: bool,
    run: int,
    begun: bool,
    fetch: Fetch | None,
) -> Embedding:
    # Here, because a run that computes its vectors itself does not need it.
    from ragingest.checkpoint.counted import CountedBooks
    from ragingest.checkpoint.known import KnownTexts, StoredTexts
    from ragingest.checkpoint.vectors import PaidVectors
    from ragingest.embedders.remote import RemoteCalls
    from ragingest.embedders.truncation import Truncation

    name = settings.embedder
    facts = _facts(settings)
    model = facts.name
    _set_price(books, facts, facts.price_per_million, options)
    kept_books = CountedBooks(counted, run, books, begun=begun)
    dimensions, asked = _dimensions(settings, options, facts, books)
    api = open_api(name, model, base_url=settings.base_url, dimensions=asked, timeout=options.timeout)
    estimator = TokenEstimator.for_limits(facts.max_request_tokens, facts.special_tokens)
    count = exact_counter(model)
    max_inputs = min(options.batch_size or facts.max_inputs, facts.max_inputs)
    kept = None
    if options.spool or options.keep_embeddings or PaidVectors.files(vectors):  # what is paid for is used
        kept = _paid_vectors(settings, options, facts, dimensions, vectors, emit)
    stored = None
    if kept is not None and fetch is not None and not options.keep_embeddings:
        known = KnownTexts(
            kept.path.with_name(f"{kept.path.name}.known"), f"{kept.model}\0{dimensions}\0{run}", anew=not begun
        )
        stored = StoredTexts(known, fetch)
    calls = RemoteCalls(
        api,
        dimensions,
        _limits(options),
        books,
        estimator,
        max_request_tokens=facts.max_request_tokens,
        texts=max_inputs,
        kept=kept,
        stored=stored,
        sparse=BM25().encode if sparse else None,
        counted=kept_books.write,
        on_change=lambda opened: emit(
            Noticed(f"{api.name} {'fails: waiting for it' if opened else 'answers again'}")
        ),
    )

    truncation = Truncation(
        calls.embed, estimator, facts.max_input_tokens, count, books, BM25().encode if sparse else None
    )

    async def embed(chunks: list[Chunk]) -> EmbeddedBatch:
        if len(chunks) > 1:
            return await calls.embed(chunks)
        if settings.truncate:
            return await truncation.embed(chunks[0])
        _check_length(chunks[0].text, facts, estimator, count)
        return await calls.embed(chunks)

    async def aclose() -> None:
        await calls.close()
        if stored is not None:
            stored.close()
        if kept is not None:
            kept.close()
        kept_books.close()

    split: Split = whole
    if settings.chunk:
        split = EstimatingChunker(settings.chunk_size, settings.chunk_overlap, facts.max_input_tokens).split
    return Embedding(
        name=name,
        model=model,
        dimensions=dimensions,
        sparse=sparse,
        concurrency=options.max_concurrency,
        room=calls.room,
        when_room=calls.when_room,
        split=split,
        packer=RequestPacker(
            lambda chunk: chunk.text,
            estimator,
            max_inputs=max_inputs,
            max_tokens=facts.max_request_tokens,
            max_input_tokens=facts.max_input_tokens,
            count=count,
        ),
        embed=embed,
        embedded=calls.confirmed,
        sync=calls.sync,
        aclose=aclose,
    )


def _batched(
    settings: JobSettings,
    options: RunOptions,
    books: Books,
    vectors: Path,
    emit: Emit,
    batches: Path,
    run: int,
    *,
    begun: bool,
    sparse: bool,
) -> Embedding:
    from ragingest.checkpoint.batches import BatchStates
    from ragingest.embedders.batches import BatchCalls
    from ragingest.embedders.openai_batch import MAX_BYTES, MAX_TEXTS

    facts = _facts(settings)
    _set_price(books, facts, facts.batch_price_per_million, options)
    dimensions, asked = _dimensions(settings, options, facts, Books())
    api = open_batch_api(
        settings.embedder, facts.name, base_url=settings.base_url, dimensions=asked, timeout=options.timeout
    )
    estimator = TokenEstimator.for_limits(facts.max_request_tokens, facts.special_tokens)
    count = exact_counter(facts.name)
    kept = _paid_vectors(settings, options, facts, dimensions, vectors, emit)
    states = BatchStates(
        batches,
        f"{kept.model} {dimensions}",
        run,
        begun=begun,
        max_texts=min(options.batch_size or MAX_TEXTS, MAX_TEXTS),
        max_bytes=MAX_BYTES,
    )
    if states.forgotten:
        emit(Noticed(f"{states.forgotten} batches of another model were under way: they are not fetched"))
    calls = BatchCalls(
        api,
        states,
        kept,
        dimensions,
        _limits(options),
        books,
        estimator,
        check=lambda text: None if settings.truncate else _check_length(text, facts, estimator, count),
        cut=(lambda text: estimator.beginnings(text, facts.max_input_tokens, count)) if settings.truncate else None,
        sparse=BM25().encode if sparse else None,
        notice=lambda message: emit(Noticed(message)),
        poll_seconds=options.poll_interval,
    )

    async def embedded(_chunks: Sequence[Chunk]) -> None:
        pass

    split: Split = whole
    if settings.chunk:
        split = EstimatingChunker(settings.chunk_size, settings.chunk_overlap, facts.max_input_tokens).split
    return Embedding(
        name=settings.vectors_of,
        model=facts.name,
        dimensions=dimensions,
        sparse=sparse,
        concurrency=READERS,
        room=None,
        split=split,
        packer=StreamingBatcher(READ_TOGETHER),
        embed=calls.embed,
        embedded=embedded,
        sync=calls.sync,
        aclose=calls.close,
        later=calls,
    )


def _facts(settings: JobSettings) -> ModelFacts:
    """What is known of the job's model.

    Raises:
        UsageError: it does not make as many dimensions as are asked for.
    """
    facts = facts_of(settings.vectors_of, settings.model or DEFAULT_MODELS[settings.embedder])
    if settings.dimensions is not None:
        facts.check_dimensions(settings.dimensions)
    return facts


def _set_price(books: Books, facts: ModelFacts, listed: float | None, options: RunOptions) -> None:
    books.price_per_million = listed if options.price_per_million is None else options.price_per_million
    if options.max_cost is not None and books.price_per_million is None:
        raise UsageError(
            f"the price of {facts.name} is not known, so --max-cost cannot be kept", "give --price-per-million"
        )


def _dimensions(
    settings: JobSettings, options: RunOptions, facts: ModelFacts, books: Books
) -> tuple[int, int | None]:
    """Dimensions of the vectors; and those to ask for, if the model makes several."""
    dimensions = settings.dimensions or facts.dimensions
    if dimensions is None:
        dimensions = len(
            _ask(
                settings.vectors_of,
                facts.name,
                settings.base_url,
                None,
                PROBE,
                options.timeout,
                options.give_up_after,
                books,
            )
        )
    return dimensions, settings.dimensions if facts.shortenable else None


def _paid_vectors(
    settings: JobSettings, options: RunOptions, facts: ModelFacts, dimensions: int, vectors: Path, emit: Emit
) -> PaidVectors:
    from ragingest.checkpoint.vectors import PaidVectors

    model = " ".join(filter(None, (settings.vectors_of, settings.base_url, facts.name)))
    kept = PaidVectors(vectors, model, dimensions, keep=False)
    warnings = [kept.warning]
    if options.keep_embeddings:
        # For all jobs of the folder.
        cache = PaidVectors(vectors.with_name(CACHE), model, dimensions, keep=True)
        warnings.append(cache.warning)
        kept.move_to(cache)
        kept.close()
        kept = cache
    for warning in filter(None, warnings):
        emit(Noticed(warning))
    return kept


def _limits(options: RunOptions) -> RemoteLimits:
    from ragingest.embedders.remote import RemoteLimits

    return RemoteLimits(
        options.rpm,
        options.tpm,
        options.max_concurrency,
        options.max_cost,
        options.max_tokens,
        options.give_up_after,
    )


def _check_length(
    text: str, facts: ModelFacts, estimator: TokenEstimator, count: Callable[[str], int] | None
) -> None:
    """Nothing over the model's limit is sent, and nothing is cut in silence.

    Raises:
        RejectedError: the text is too long, or may well be.
    """
    fits = estimator.fits(text, facts.max_input_tokens, count)
    if fits or (fits is None and not estimator.doubtful(measure(text), facts.max_input_tokens)):
        return
    raise RejectedError(
        "too_many_tokens",
        f"the text has {len(text.encode()):,} bytes, too many for the {facts.max_input_tokens:,} tokens that "
        f"{facts.name} takes; leave --no-chunk out to have it split, or add --truncate to have it cut",
    )


def _ask(
    name: str,
    model: str,
    base_url: str | None,
    dimensions: int | None,
    text: str,
    timeout: float,
    give_up_after: float,
    books: Books,
    *,
    query: bool = False,
) -> Vectors:
    """One vector, shape (d,), outside of any run."""

    from ragingest.embedders.remote import ask

    async def asked() -> Vectors:
        api = open_api(name, model, base_url=base_url, dimensions=dimensions, timeout=timeout, query=query)
        try:
            answer = await ask(api, text, books, give_up_after)
            vector: Vectors = answer.vectors[0]
            return vector
        finally:
            await api.close()

    try:
        return asyncio.run(asked())
    except (TransientError, RejectedError) as error:
        raise TerminalError(str(error), "check --base-url and --model, or try again later") from None
