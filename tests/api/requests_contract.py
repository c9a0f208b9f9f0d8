"""What every `EmbeddingRequests` promises, against a service on loopback. An adapter's test supplies `build`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import ClassVar

import numpy as np
import pytest

from ragingest.errors import RejectedError, TerminalError, TransientError
from ragingest.protocols import Answer, EmbeddingRequests, RateNews
from tests.servers import faults
from tests.servers.faults import Fault
from tests.servers.openai_api import EmbeddingsServer, ServerConfig, vector_of
from tests.servers.vectors import TokenCounter

__all__ = ["DIMENSIONS", "KEY", "TEXTS", "EmbeddingRequestsContract", "Outcome", "refused", "tell"]

KEY = "sk-test-5ecre7-0123456789"
DIMENSIONS = 24
TEXTS = ["one", "zwei", "三", "🔒 four", "five " * 200, "one more", " six\n", "a\0b"]
COUNTER = TokenCounter(ServerConfig().tokens_per_ascii_byte, ServerConfig().tokens_per_other_byte)

Outcome = Answer | TransientError | TerminalError | RejectedError

SPOILT = [
    *(fault for fault in faults.retryable() if fault.kind not in ("wrong_dimension", "out_of_order", "slow")),
    faults.wrong_count(surplus=3),
]
"""Faults after which the same request deserves another try, and that can be told from the answer alone."""

BUSY = [
    faults.rate_limited(),
    faults.rate_limited(code="slow_down"),
    faults.rate_limited(retry_after=3),
    faults.status(503),
    faults.status(503, retry_after=3),
]

FATAL = [faults.forbidden(), *(faults.quota(code) for code in faults.QUOTA_CODES)]


def named(fault: Fault) -> str:
    return " ".join(
        f"{field}={getattr(fault, field)}" for field in fault.__struct_fields__ if getattr(fault, field)
    )


def tell(outcome: Outcome) -> str:
    """Everything that a person or a log would see of an error."""
    assert isinstance(outcome, Exception), outcome
    return f"{outcome} {outcome!r} {getattr(outcome, 'hint', '')} {outcome.__cause__!r}"


def refused(outcome: Outcome, kind: type[TransientError | TerminalError | RejectedError]) -> str:
    """What the error says, which must be of that kind."""
    assert type(outcome) is kind, outcome
    return str(outcome)


class EmbeddingRequestsContract:
    unknown_model: ClassVar[str] = "no-such-model"
    dimensions: ClassVar[int] = DIMENSIONS
    """What `build` asks for unless it is told otherwise."""
    tells_rates: ClassVar[bool] = True
    """Whether the service's answers say what is left of its limits."""

    def build(
        self,
        url: str,
        *,
        key: str = KEY,
        model: str | None = None,
        dimensions: int | None = DIMENSIONS,
        timeout: float = 60.0,
    ) -> EmbeddingRequests:
        """The API of the server at `url` (no path), with its usual model if none is given."""
        raise NotImplementedError

    @pytest.fixture
    def server(self) -> Iterator[EmbeddingsServer]:
        with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
            yield server

    def send(self, api: EmbeddingRequests, *batches: Sequence[str]) -> list[Outcome]:
        """One request after the other, and what came of each."""

        async def run() -> list[Outcome]:
            try:
                return [await attempt(texts) for texts in batches]
            finally:
                await api.close()

        async def attempt(texts: Sequence[str]) -> Outcome:
            try:
                return await api.request(texts)
            except (TransientError, TerminalError, RejectedError) as error:
                return error

        return asyncio.run(run())

    def ask(self, server: EmbeddingsServer, texts: Sequence[str] = TEXTS, *script: Fault | None) -> Outcome:
        server.script(script)
        [outcome] = self.send(self.build(server.url), texts)
        return outcome

    def right(self, outcome: Outcome, texts: Sequence[str], dimensions: int | None = None) -> None:
        """That each row is the vector of its text, and nothing else."""
        dimensions = dimensions or self.dimensions
        assert isinstance(outcome, Answer), outcome
        assert outcome.vectors.dtype == np.float32
        assert outcome.vectors.shape == (len(texts), dimensions)
        expected = np.stack([vector_of(text, dimensions) for text in texts])
        np.testing.assert_array_equal(outcome.vectors, expected)

    # -- answers -----------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, server: EmbeddingsServer) -> None:
        api = self.build(server.url, model="a-model")
        assert api.name
        assert api.model == "a-model"

    @pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS, ["same"] * 3, [f"text {n}" for n in range(96)]], ids=len)
    def test_row_i_belongs_to_text_i(self, server: EmbeddingsServer, texts: list[str]) -> None:
        self.right(self.ask(server, texts), texts)

    def test_rows_that_come_shuffled_are_put_in_order(self, server: EmbeddingsServer) -> None:
        self.right(self.ask(server, TEXTS, faults.out_of_order()), TEXTS)

    def test_without_dimensions_the_model_gives_its_own(self, server: EmbeddingsServer) -> None:
        [outcome] = self.send(self.build(server.url, dimensions=None), TEXTS)
        self.right(outcome, TEXTS, 1536)

    def test_tokens_are_those_that_the_server_counted(self, server: EmbeddingsServer) -> None:
        outcome = self.ask(server)
        assert isinstance(outcome, Answer)
        assert outcome.tokens == server.books.tokens_answered == sum(map(COUNTER.count, TEXTS))

    def test_a_call_is_one_request_on_the_wire(self, server: EmbeddingsServer) -> None:
        self.ask(server)
        assert server.books.by_status == {"200": 1}
        assert server.books.texts_received == len(TEXTS)

    def test_many_calls_at_once_get_each_its_own_answer(self, server: EmbeddingsServer) -> None:
        batches = [[f"{batch} {number}" for number in range(20)] for batch in range(30)]

        async def run() -> list[Answer]:
            api = self.build(server.url)
            try:
                return await asyncio.gather(*map(api.request, batches))
            finally:
                await api.close()

        server.set_latency(0.1)
        for batch, answer in zip(batches, asyncio.run(run()), strict=True):
            self.right(answer, batch)
        assert server.books.most_in_flight > 1

    def test_a_slow_answer_is_waited_for(self, server: EmbeddingsServer) -> None:
        self.right(self.ask(server, TEXTS, faults.slow(0.05)), TEXTS)

    # -- worth another try -------------------------------------------------------------------------

    @pytest.mark.parametrize("fault", SPOILT, ids=named)
    def test_what_may_pass_is_transient_and_passes(self, server: EmbeddingsServer, fault: Fault) -> None:
        server.script([fault])
        first, second = self.send(self.build(server.url), TEXTS, TEXTS)
        refused(first, TransientError)
        self.right(second, TEXTS)
        assert server.books.requests == 2

    @pytest.mark.parametrize("fault", SPOILT, ids=named)
    def test_the_same_holds_for_a_single_text(self, server: EmbeddingsServer, fault: Fault) -> None:
        refused(self.ask(server, ["alone"], fault), TransientError)

    def test_vectors_of_another_length_are_never_bent_to_the_right_one(self, server: EmbeddingsServer) -> None:
        outcome = self.ask(server, TEXTS, faults.wrong_dimension())
        if isinstance(outcome, Answer):
            assert outcome.vectors.shape == (len(TEXTS), self.dimensions + 1)
        else:
            refused(outcome, TransientError)

    @pytest.mark.parametrize("fault", BUSY, ids=named)
    def test_429_and_503_ask_for_fewer_calls(self, server: EmbeddingsServer, fault: Fault) -> None:
        outcome = self.ask(server, TEXTS, fault)
        assert isinstance(outcome, TransientError)
        assert outcome.throttled

    @pytest.mark.parametrize("code", [408, 409, 500, 502, 504])
    def test_other_failures_do_not(self, server: EmbeddingsServer, code: int) -> None:
        outcome = self.ask(server, TEXTS, faults.status(code))
        assert isinstance(outcome, TransientError)
        assert not outcome.throttled
        assert str(code) in str(outcome)

    @pytest.mark.parametrize(
        ("fault", "seconds"),
        [
            (faults.rate_limited(retry_after=7), 7),
            (faults.rate_limited(retry_after=0.25), 0.25),
            (faults.rate_limited(retry_after_ms=1500), 1.5),
            (faults.rate_limited(retry_after=2, retry_after_ms=1250), 1.25),
            (faults.status(503, retry_after=9), 9),
            (faults.status(500, retry_after="0.5"), 0.5),
            (faults.rate_limited(), None),
            (faults.rate_limited(retry_after="soon"), None),
        ],
        ids=str,
    )
    def test_it_tells_how_long_the_server_wants_to_be_left_alone(
        self, server: EmbeddingsServer, fault: Fault, seconds: float | None
    ) -> None:
        outcome = self.ask(server, TEXTS, fault)
        assert isinstance(outcome, TransientError)
        assert outcome.retry_after == seconds

    def test_a_date_to_wait_for_is_understood(self, server: EmbeddingsServer) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        outcome = self.ask(server, TEXTS, faults.rate_limited(retry_after=date))
        assert isinstance(outcome, TransientError)
        assert outcome.retry_after is not None
        assert 0 < outcome.retry_after <= 3600

    def test_a_server_that_is_not_there_may_come_back(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            [outcome] = self.send(self.build(url), TEXTS)
        assert url in refused(outcome, TransientError)

    def test_an_answer_that_does_not_come_in_time_is_given_up(self, server: EmbeddingsServer) -> None:
        server.script([faults.slow(120)])
        first, second = self.send(self.build(server.url, timeout=0.3), TEXTS, TEXTS)
        assert "0.3 s" in refused(first, TransientError)
        self.right(second, TEXTS)

    # -- no use to try again -----------------------------------------------------------------------

    @pytest.mark.parametrize("fault", FATAL, ids=named)
    def test_no_right_and_no_money_are_terminal(self, server: EmbeddingsServer, fault: Fault) -> None:
        outcome = self.ask(server, TEXTS, fault)
        refused(outcome, TerminalError)
        assert isinstance(outcome, TerminalError)
        assert outcome.hint
        assert server.books.requests == 1

    def test_a_wrong_key_is_terminal_and_the_hint_names_where_it_comes_from(self, server: EmbeddingsServer) -> None:
        [outcome] = self.send(self.build(server.url, key="sk-wrong-0123456789"), TEXTS)
        assert "401" in refused(outcome, TerminalError)
        assert isinstance(outcome, TerminalError)
        assert "_API_KEY" in outcome.hint

    def test_an_unknown_model_is_terminal_and_named(self, server: EmbeddingsServer) -> None:
        [outcome] = self.send(self.build(server.url, model=self.unknown_model, dimensions=None), TEXTS)
        assert self.unknown_model in refused(outcome, TerminalError)
        assert isinstance(outcome, TerminalError)
        assert "--model" in outcome.hint

    # -- never as it is ----------------------------------------------------------------------------

    def test_a_text_that_the_server_refuses_is_rejected_with_its_message(self, server: EmbeddingsServer) -> None:
        outcome = self.ask(server, ["good", "POISON", "good too"])
        assert "'$.input' is invalid" in refused(outcome, RejectedError) or "invalid" in str(outcome)
        assert isinstance(outcome, RejectedError)
        assert outcome.kind == "refused_by_embedder"

    def test_too_many_texts_are_rejected(self, server: EmbeddingsServer) -> None:
        refused(self.ask(server, ["x"] * 2049), RejectedError)

    def test_a_body_that_is_too_large_is_rejected(self) -> None:
        with EmbeddingsServer(ServerConfig(api_key=KEY, max_body_bytes=300)) as server:
            outcome = self.ask(server, ["long " * 100])
            assert server.books.by_status == {"413": 1}
        assert "exceeded" in refused(outcome, RejectedError)

    # -- what the server says of its limits --------------------------------------------------------

    def test_the_news_of_both_budgets_are_passed_on(self) -> None:
        config = ServerConfig(api_key=KEY, rpm=100, tpm=10_000)
        with EmbeddingsServer(config, clock=lambda: 5.0) as server:
            outcome = self.ask(server)
        assert isinstance(outcome, Answer)
        left = 10_000 - outcome.tokens
        expected = RateNews(100, 99, 60, 10_000, left, 60) if self.tells_rates else RateNews()
        assert outcome.news == expected

    def test_a_call_over_the_limit_is_told_how_long_to_wait_and_what_is_left(self) -> None:
        with EmbeddingsServer(ServerConfig(api_key=KEY, rpm=1), clock=lambda: 5.0) as server:
            first, second = self.send(self.build(server.url), TEXTS, TEXTS)
            assert server.books.limited == 1
        assert isinstance(first, Answer)
        assert isinstance(second, TransientError)
        assert second.throttled
        assert second.retry_after == 60
        if self.tells_rates:
            assert second.news == RateNews(1, 0, 60)

    def test_a_server_that_says_nothing_makes_no_news(self, server: EmbeddingsServer) -> None:
        outcome = self.ask(server)
        assert isinstance(outcome, Answer)
        assert outcome.news == RateNews()

    # -- secrets -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("fault", [*SPOILT, *FATAL], ids=named)
    def test_no_error_tells_the_key(self, server: EmbeddingsServer, fault: Fault) -> None:
        assert KEY not in tell(self.ask(server, TEXTS, fault))

    def test_neither_does_a_refused_key_nor_a_missing_server(self, server: EmbeddingsServer) -> None:
        another = "sk-another-5ecre7"
        [refusal] = self.send(self.build(server.url, key=another), TEXTS)
        [silence] = self.send(self.build("http://127.0.0.1:9", key=another), TEXTS)
        assert another not in tell(refusal) + tell(silence)

    # -- its end -----------------------------------------------------------------------------------

    def test_it_may_be_closed_unused_and_twice(self, server: EmbeddingsServer) -> None:
        async def run() -> None:
            api = self.build(server.url)
            await api.close()
            await api.request(["text"])
            await api.close()
            await api.close()

        asyncio.run(run())
        assert server.books.requests == 1

    def test_a_call_that_is_cancelled_leaves_the_others_alone(self, server: EmbeddingsServer) -> None:
        async def run() -> Answer:
            api = self.build(server.url)
            server.script([faults.slow(120)])
            doomed = asyncio.create_task(api.request(["doomed"]))
            await asyncio.to_thread(server.wait_until, lambda books: books.requests == 1)
            doomed.cancel()
            try:
                answer = await api.request(TEXTS)
                await asyncio.gather(doomed, return_exceptions=True)
                assert doomed.cancelled()
                return answer
            finally:
                await api.close()

        self.right(asyncio.run(run()), TEXTS)
