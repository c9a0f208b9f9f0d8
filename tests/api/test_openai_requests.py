"""OpenAI's embeddings API: the contract, and what only its own shape of answers can go wrong with."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ragingest.embedders import open_api
from ragingest.embedders.openai import OpenAIRequests
from ragingest.errors import RejectedError, TerminalError, TransientError, UsageError
from ragingest.protocols import Answer, EmbeddingRequests, RateNews
from tests.servers.openai_api import EmbeddingsServer, ServerConfig, vector_of

from .canned import Canned, Reply, embeddings, error
from .requests_contract import DIMENSIONS, KEY, EmbeddingRequestsContract, Outcome, refused, tell

MODEL = "text-embedding-3-small"


class TestOpenAI(EmbeddingRequestsContract):
    def build(
        self,
        url: str,
        *,
        key: str = KEY,
        model: str | None = None,
        dimensions: int | None = DIMENSIONS,
        timeout: float = 60.0,
    ) -> EmbeddingRequests:
        return OpenAIRequests(model or MODEL, key, f"{url}/v1", dimensions, timeout)


def answered(reply: Reply, count: int = 2, key: str | None = KEY) -> Outcome:
    """What comes of one request for `count` texts that gets this answer."""
    with Canned(reply) as server:
        return sent(OpenAIRequests(MODEL, key, server.base_url, None, 60.0), count)


def sent(api: OpenAIRequests, count: int = 2) -> Outcome:
    async def run() -> Outcome:
        try:
            return await api.request([f"text {number}" for number in range(count)])
        except (TransientError, TerminalError, RejectedError) as failure:
            return failure
        finally:
            await api.close()

    return asyncio.run(run())


def b64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def rows(outcome: Outcome) -> list[list[float]]:
    assert isinstance(outcome, Answer), outcome
    assert outcome.vectors.dtype == np.float32
    found: list[list[float]] = outcome.vectors.tolist()
    return found


def test_it_asks_for_base64_and_sends_model_texts_dimensions_and_key() -> None:
    with Canned(embeddings(b64(1, 2), b64(3, 4))) as server:
        sent(OpenAIRequests("a-model", "sk-key", server.base_url + "/", 2, 60.0))
        [seen] = server.seen
    assert seen.target == "/v1/embeddings"
    assert seen.headers["authorization"] == "Bearer sk-key"
    assert seen.headers["content-type"] == "application/json"
    assert seen.body == {
        "model": "a-model",
        "encoding_format": "base64",
        "dimensions": 2,
        "input": ["text 0", "text 1"],
    }


def test_without_key_and_dimensions_neither_is_sent() -> None:
    with Canned(embeddings(b64(1), b64(2))) as server:
        sent(OpenAIRequests(MODEL, None, server.base_url, None, 60.0))
        [seen] = server.seen
    assert "authorization" not in seen.headers
    assert "dimensions" not in seen.body


def test_base64_and_numbers_are_the_same_to_it() -> None:
    assert rows(answered(embeddings(b64(0.5, -2), b64(3, 4)))) == [[0.5, -2], [3, 4]]
    assert rows(answered(embeddings([0.5, -2], [3, 4]))) == [[0.5, -2], [3, 4]]


def test_a_server_that_only_writes_numbers_gives_the_same_vectors() -> None:
    vectors = [vector_of(text, DIMENSIONS) for text in ("text 0", "text 1")]
    outcome = answered(embeddings(*(vector.tolist() for vector in vectors)))
    assert isinstance(outcome, Answer)
    np.testing.assert_array_equal(outcome.vectors, np.stack(vectors))


@pytest.mark.parametrize("indexes", [(0, 1, 2), (2, 0, 1), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("write", [b64, lambda *numbers: list(numbers)], ids=["base64", "numbers"])
def test_rows_go_by_their_index(indexes: tuple[int, ...], write: Callable[..., object]) -> None:
    reply = embeddings(*(write(float(index), 1.0) for index in indexes), indexes=indexes)
    assert rows(answered(reply, 3)) == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("indexes", [(0, 0), (1, 2), (0, 2), (-1, 0)])
def test_indexes_that_are_not_those_of_the_texts_are_not_guessed_at(indexes: tuple[int, ...]) -> None:
    said = refused(answered(embeddings(b64(1), b64(2), indexes=indexes)), TransientError)
    assert "indexes" in said


@pytest.mark.parametrize(
    "spoilt",
    [
        embeddings(b64(1, 2), b64(1)),
        embeddings([1, 2], [1]),
        embeddings(b64(1), [1, 2, 3, 4]),
        embeddings([1, 2, 3, 4], b64(1)),
        embeddings(b64(1), [1]),
        embeddings("", ""),
        embeddings([], []),
        embeddings("AAA=", "AAA="),
        embeddings("no base64!", "no base64!"),
        embeddings(b64(1, float("nan")), b64(1, 2)),
        embeddings(b64(1, 2), b64(float("inf"), 2)),
        embeddings([1, None], [1, 2]),
        embeddings([1, 1e39], [1, 2]),
        embeddings([1, "2"], [1, 2]),
        embeddings([[1]], [[1]]),
        embeddings(None, None),
        embeddings(),
        embeddings(b64(1)),
        embeddings(b64(1), b64(2), b64(3)),
        Reply(b""),
        Reply(b"null"),
        Reply(b"[]"),
        Reply(b"{}"),
        Reply(b'{"data": null}'),
        Reply(b'{"error": {"message": "in a 200"}}'),
        Reply(b'{"data": [{"embedding": [1e999], "index": 0}, {"embedding": [1], "index": 1}]}'),
        Reply(b'{"data": [{"embedding": [NaN], "index": 0}, {"embedding": [1], "index": 1}]}'),
        Reply(b'{"data": [{"embedding": [1]}, {"embedding": [1]}]}'),
        Reply(b"\xff\xfe<html>"),
        Reply(b"\x1f\x8b broken", headers={"Content-Encoding": "gzip"}),
        Reply(b"<html><body>Just a moment...</body></html>", headers={"Content-Type": "text/html"}),
    ],
    ids=lambda reply: reply.body.decode(errors="replace")[:80],
)
def test_an_answer_that_is_no_vectors_of_these_texts_is_transient(spoilt: Reply) -> None:
    refused(answered(spoilt), TransientError)


def test_a_mix_of_both_forms_is_not_read_as_one() -> None:
    refused(answered(embeddings(b64(1, 2, 3, 4), [1] * 16)), TransientError)


@pytest.mark.parametrize("usage", [b"", b',"usage":null', b',"usage":{}', b',"usage":{"prompt_tokens":0}'])
def test_a_server_that_does_not_count_tokens_is_believed_to_have_counted_none(usage: bytes) -> None:
    outcome = answered(Reply(b'{"data":[{"embedding":[1],"index":0}]%b}' % usage), 1)
    assert isinstance(outcome, Answer)
    assert outcome.tokens == 0


def test_prompt_tokens_do_where_there_is_no_total() -> None:
    outcome = answered(Reply(b'{"data":[{"embedding":[1],"index":0}],"usage":{"prompt_tokens":5}}'), 1)
    assert isinstance(outcome, Answer)
    assert outcome.tokens == 5


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_batch_is_rejected_with_the_servers_words(status: int) -> None:
    assert refused(answered(error(status, {"message": "no such thing"})), RejectedError) == "no such thing"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "a sentence"}', "a sentence"),
        (b'{"message": "flat"}', "flat"),
        (b'{"detail": [{"msg": "field required"}]}', "field required"),
        (b'{"error": {"message": null}}', "null"),
        (b'{"error": null, "message": "beside"}', "beside"),
        (b"<html>  413\n too large </html>", "413 too large"),
        (b'"just text"', "just text"),
        (b"", "nothing"),
        (b"\xff\xfe", "�"),
    ],
)
def test_the_message_is_found_in_whatever_shape_it_comes(body: bytes, said: str) -> None:
    assert said in refused(answered(Reply(body, 413)), RejectedError)


@pytest.mark.parametrize("status", [401, 403])
def test_the_hint_of_a_refused_key_names_the_variable(status: int) -> None:
    outcome = answered(error(status, {"message": "no"}))
    refused(outcome, TerminalError)
    assert isinstance(outcome, TerminalError)
    assert "OPENAI_API_KEY" in outcome.hint


def test_a_404_hints_at_model_and_url() -> None:
    outcome = answered(Reply(b"404 page not found", 404))
    assert "404 page not found" in refused(outcome, TerminalError)
    assert isinstance(outcome, TerminalError)
    assert f"--model {MODEL}" in outcome.hint
    assert "--base-url" in outcome.hint


@pytest.mark.parametrize("status", [204, 304, 402, 405, 410, 451])
def test_any_other_status_is_terminal_and_shown(status: int) -> None:
    outcome = answered(Reply(b"" if status in (204, 304) else b"odd", status))
    assert str(status) in refused(outcome, TerminalError)


@pytest.mark.parametrize(
    "fields",
    [
        {"code": "insufficient_quota", "type": "insufficient_quota"},
        {"code": None, "type": "insufficient_quota"},
        {"code": "other", "type": "insufficient_quota"},
        {"code": "billing_hard_limit_reached", "type": "invalid_request_error"},
    ],
)
def test_a_429_without_money_is_terminal_wherever_it_says_so(fields: dict[str, str | None]) -> None:
    outcome = answered(error(429, {"message": "pay", **fields}, retry_after="1"))
    assert "pay" in refused(outcome, TerminalError)
    assert isinstance(outcome, TerminalError)
    assert "resume" in outcome.hint


@pytest.mark.parametrize(
    "body", [b"", b"<html>slow down</html>", b'{"error": null}', b"[]", b'{"error": {"code": 7}}']
)
def test_a_429_that_does_not_speak_of_money_is_transient(body: bytes) -> None:
    outcome = answered(Reply(body, 429, {"Retry-After": "2"}))
    assert isinstance(outcome, TransientError)
    assert outcome.throttled
    assert outcome.retry_after == 2


@pytest.mark.parametrize("status", [500, 520, 529, 599])
def test_every_5xx_is_transient(status: int) -> None:
    refused(answered(Reply(b"<html>bad gateway</html>", status)), TransientError)


# -- news ----------------------------------------------------------------------------------------------


def test_news_are_read_from_any_spelling_and_nonsense_is_none() -> None:
    headers = {
        "X-RateLimit-Limit-Requests": "3000",
        "x-ratelimit-remaining-requests": "many",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-limit-tokens": "1000000",
        "X-Ratelimit-Remaining-Tokens": "999000.5",
        "x-ratelimit-reset-tokens": "soon",
    }
    outcome = answered(Reply(embeddings(b64(1), b64(2)).body, headers=headers))
    assert isinstance(outcome, Answer)
    assert outcome.news == RateNews(3000, None, 360, 1_000_000, 999_000.5, None)


# -- keys and addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_a_server_that_repeats_the_key_does_not_make_it_known(status: int) -> None:
    for reply in (
        error(status, {"message": f"Incorrect API key provided: {KEY}."}),
        Reply(f"<html>you sent Authorization: Bearer {KEY}</html>".encode(), status),
    ):
        assert KEY not in tell(answered(reply))


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\n", f"  {KEY} "])
def test_white_space_around_a_key_is_no_part_of_it(key: str) -> None:
    with Canned(embeddings(b64(1), b64(2))) as server:
        sent(OpenAIRequests(MODEL, key, server.base_url, None, 60.0))
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-nul\0", "sk-ключ", "sk-\udcff"])
def test_a_key_that_no_header_takes_is_a_usage_error_that_does_not_show_it(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        OpenAIRequests(MODEL, key, "http://localhost/v1", None, 60.0)
    assert "OPENAI_API_KEY" in caught.value.message + caught.value.hint
    assert key not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "",
        "ftp://host/v1",
        "http://",
        "https:///v1",
        "http://host:99999/v1",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://ho st/v1",
    ],
)
def test_a_base_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        OpenAIRequests(MODEL, KEY, url, None, 60.0)


def test_credentials_of_other_programs_do_not_replace_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for key in (KEY, None):
        with Canned(embeddings(b64(1), b64(2))) as server:
            assert rows(sent(OpenAIRequests(MODEL, key, server.base_url, None, 60.0))) == [[1], [2]]
            assert server.seen[0].headers.get("authorization") == (key and f"Bearer {key}")


def test_a_proxy_named_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Canned(embeddings(b64(1), b64(2))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert rows(sent(OpenAIRequests(MODEL, KEY, "http://embeddings.invalid/v1", None, 60.0))) == [[1], [2]]
        assert proxy.seen[0].target == "http://embeddings.invalid/v1/embeddings"


def test_a_proxy_is_not_used_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with Canned(embeddings(b64(1), b64(2))) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert rows(sent(OpenAIRequests(MODEL, KEY, server.base_url, None, 60.0))) == [[1], [2]]


def test_without_a_key_only_a_server_of_ones_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        open_api("openai", MODEL, base_url=None, dimensions=None, timeout=60.0)
    with EmbeddingsServer(ServerConfig(api_key=None)) as server:
        api = open_api("openai", MODEL, base_url=server.base_url, dimensions=8, timeout=60.0)
        assert isinstance(api, OpenAIRequests)
        assert np.shape(rows(sent(api))) == (2, 8)


def test_the_key_in_the_environment_is_the_one_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EmbeddingsServer(ServerConfig(api_key=KEY)) as server:
        api = open_api("openai", MODEL, base_url=server.base_url, dimensions=8, timeout=60.0)
        assert isinstance(api, OpenAIRequests)
        assert np.shape(rows(sent(api))) == (2, 8)
