from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import openai
import pytest
from openai.types import Batch

from tests.servers.faults import reset_after, status
from tests.servers.openai_api import BatchOutcome, EmbeddingsServer, ServerConfig, digest_of, vector_of
from tests.unit.servers.client import MODEL, Sdk, decode

CONFIG = ServerConfig(
    tokens_per_ascii_byte=1.0,
    max_file_bytes=5000,
    batch_max_requests=6,
    batch_max_inputs=10,
    batch_enqueued_tokens=60,
)


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer(CONFIG) as server:
        yield server


@pytest.fixture
def client(server: EmbeddingsServer, sdk: Sdk) -> openai.OpenAI:
    return sdk(server)


def line(custom_id: str, texts: Sequence[str], **changes: Any) -> bytes:
    body = {"model": MODEL, "input": texts, "dimensions": 8, "encoding_format": "base64", **changes}
    return msgspec.json.encode({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


def submit(client: openai.OpenAI, *lines: bytes) -> Batch:
    file = client.files.create(file=("input.jsonl", b"\n".join(lines) + b"\n"), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def finish(client: openai.OpenAI, batch: Batch) -> Batch:
    """Poll until it has ended."""
    for _ in range(10):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
    raise AssertionError(f"it stays {batch.status}")


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of an output or error file by custom id."""
    assert file_id is not None
    lines = [msgspec.json.decode(raw) for raw in client.files.content(file_id).content.splitlines()]
    return {result["custom_id"]: result for result in lines}


def test_the_sdk_uploads_creates_polls_and_downloads(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    batch = submit(client, line("a", ["one", "two"]), line("b", ["three"]))
    seen = [batch.status, *(client.batches.retrieve(batch.id).status for _ in range(5))]
    assert seen == ["validating", "validating", "in_progress", "finalizing", "completed", "completed"]
    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}
    assert batch.usage is not None
    assert batch.usage.input_tokens == 11
    assert batch.model == MODEL
    assert batch.error_file_id is None
    found = results(client, batch.output_file_id)
    assert set(found) == {"a", "b"}
    response = found["a"]["response"]
    assert response["status_code"] == 200
    assert response["body"]["usage"]["total_tokens"] == 6
    assert found["a"]["error"] is None
    vectors = [decode(item["embedding"]) for item in response["body"]["data"]]
    np.testing.assert_array_equal(vectors, [vector_of("one", 8), vector_of("two", 8)])

    books = server.books
    assert (books.files_uploaded, books.batches_created) == (1, 1)
    assert books.batch_times_submitted == {digest_of(text): 1 for text in ("one", "two", "three")}
    assert books.batch_times_answered == books.batch_times_submitted
    assert (books.batch_texts_answered, books.batch_tokens_answered) == (3, 11)
    assert books.requests == books.texts_received == books.texts_answered == 0
    assert books.others == {"files": {"200": 2}, "batches": {"200": 7}}


def test_files_are_described_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.files.create(file=("one.jsonl", b"{}\n"), purpose="batch")
    second = client.files.create(file=("two.jsonl", b"{} \n"), purpose="batch")
    assert client.files.retrieve(first.id).filename == "one.jsonl"
    assert (second.bytes, second.purpose) == (4, "batch")
    assert client.files.content(first.id).content == b"{}\n"
    assert [file.id for file in client.files.list(purpose="batch", limit=1)] == [second.id, first.id]
    assert client.files.delete(first.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(first.id)


def test_a_file_over_the_limit_is_413(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    client.files.create(file=("large.jsonl", b"x" * 5000), purpose="batch")
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("large.jsonl", b"x" * 5001), purpose="batch")
    assert caught.value.status_code == 413
    assert server.books.files_uploaded == 1


def test_an_empty_file_and_another_purpose_are_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("empty.jsonl", b""), purpose="batch")
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("file.jsonl", b"{}"), purpose="user_data")


def test_a_batch_needs_a_file_that_is_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_x")


def test_a_batch_of_another_endpoint_or_from_an_output_file_is_400(client: openai.OpenAI) -> None:
    batch = finish(client, submit(client, line("a", ["one"])))
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/responses", completion_window="24h")
    assert batch.output_file_id is not None
    with pytest.raises(openai.BadRequestError):
        client.batches.create(
            input_file_id=batch.output_file_id, endpoint="/v1/embeddings", completion_window="24h"
        )


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([line("a", ["x"]), b"{"], "invalid_json_line", 2),
        ([b'{"custom_id": "a"}'], "invalid_json_line", 1),
        ([line("a", ["x"]), line("a", ["y"])], "duplicate_custom_id", 2),
        ([line("a", ["x"], model="gpt-x")], "model_not_found", 1),
        ([line("a", ["x"]), line("b", ["y"], model="text-embedding-3-large")], "mismatched_model", 2),
        ([line(str(number), ["x"]) for number in range(7)], "too_many_tasks", None),
        ([line("a", ["x"] * 6), line("b", ["y"] * 5)], "too_many_inputs", None),
        ([line("a", ["x" * 61])], "token_limit_exceeded", None),
    ],
)
def test_a_batch_that_is_not_valid_fails_and_says_where(
    server: EmbeddingsServer, client: openai.OpenAI, lines: list[bytes], code: str, number: int | None
) -> None:
    batch = finish(client, submit(client, *lines))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    assert server.books.batch_times_submitted == {}
    assert server.books.batches_created == 1


def test_the_largest_batch_is_taken(client: openai.OpenAI) -> None:
    assert finish(client, submit(client, line("a", ["x"] * 5), line("b", ["y"] * 5))).status == "completed"
    assert finish(client, submit(client, *(line(str(number), ["x"]) for number in range(6)))).status == "completed"


def test_the_queue_is_free_again_when_a_batch_has_ended(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    first = submit(client, line("a", ["x" * 40]))
    server.advance(first.id)
    second = finish(client, submit(client, line("a", ["y" * 30])))
    assert second.status == "failed"
    assert second.errors is not None
    assert second.errors.data is not None
    assert second.errors.data[0].code == "token_limit_exceeded"
    assert finish(client, first).status == "completed"
    assert finish(client, submit(client, line("a", ["y" * 30]))).status == "completed"
    assert server.books.batch_times_submitted == {digest_of("x" * 40): 1, digest_of("y" * 30): 1}


def test_a_partly_failed_batch_has_both_files(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.plan_batches([BatchOutcome(failing=(1,), status=503)])
    batch = submit(client, line("a", ["one"]), line("b", ["two"]), line("c", ["POISON"]), line("d", ["three", ""]))
    batch = finish(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 1, "failed": 3}
    assert set(results(client, batch.output_file_id)) == {"a"}
    errors = results(client, batch.error_file_id)
    assert {name: error["response"]["status_code"] for name, error in errors.items()} == {
        "b": 503,
        "c": 400,
        "d": 400,
    }
    assert "'$.input' is invalid" in errors["c"]["response"]["body"]["error"]["message"]
    assert server.books.batch_times_answered == {digest_of("one"): 1}


def test_an_expired_batch_keeps_what_was_done(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.plan_batches([BatchOutcome(end="expired", done=1)])
    batch = finish(client, submit(client, line("a", ["one"]), line("b", ["two"]), line("c", ["three"])))
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert set(results(client, batch.output_file_id)) == {"a"}
    errors = results(client, batch.error_file_id)
    assert set(errors) == {"b", "c"}
    assert errors["b"]["error"]["code"] == "batch_expired"
    assert errors["b"]["response"] is None
    assert server.books.batch_times_answered == {digest_of("one"): 1}


def test_a_batch_that_expires_at_once_has_no_output(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.plan_batches([BatchOutcome(end="expired", done=0)])
    batch = finish(client, submit(client, line("a", ["one"])))
    assert batch.output_file_id is None
    assert set(results(client, batch.error_file_id)) == {"a"}


def test_a_batch_can_fail_as_a_whole(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.plan_batches([BatchOutcome(end="failed")])
    assert finish(client, submit(client, line("a", ["one"]))).status == "failed"
    assert finish(client, submit(client, line("a", ["one"]))).status == "completed"


def test_a_cancelled_batch_keeps_what_was_done(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    batch = submit(client, line("a", ["one"]), line("b", ["two"]))
    server.advance(batch.id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = finish(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert set(results(client, batch.output_file_id)) == {"a"}
    assert results(client, batch.error_file_id)["b"]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_cancelled_before_it_began_has_no_output(client: openai.OpenAI) -> None:
    batch = submit(client, line("a", ["one"]), line("b", ["two"]))
    client.batches.cancel(batch.id)
    assert finish(client, batch).output_file_id is None


def test_a_batch_can_be_cancelled_by_somebody_else(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.plan_batches([BatchOutcome(end="cancelled")])
    batch = submit(client, line("a", ["one"]), line("b", ["two"]))
    assert [client.batches.retrieve(batch.id).status for _ in range(4)] == [
        "validating",
        "in_progress",
        "cancelling",
        "cancelled",
    ]


def test_batches_are_listed_newest_first_page_by_page(client: openai.OpenAI) -> None:
    made = [submit(client, line("a", ["one"])).id for _ in range(5)]
    page = client.batches.list(limit=2)
    assert page.has_more
    assert [batch.id for batch in page.data] == made[:2:-1]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert not client.batches.list().has_more


def test_metadata_comes_back(client: openai.OpenAI) -> None:
    file = client.files.create(file=("input.jsonl", line("a", ["one"])), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"job": "nightly"}
    )
    assert client.batches.retrieve(made.id).metadata == {"job": "nightly"}


def test_a_batch_survives_the_deletion_of_its_input(client: openai.OpenAI) -> None:
    batch = submit(client, line("a", ["one"]))
    client.files.delete(batch.input_file_id)
    assert finish(client, batch).status == "completed"


@pytest.mark.parametrize(
    ("polls", "seen"),
    [
        (0, ["completed", "completed"]),
        (2, ["validating", "validating", "in_progress", "in_progress", "finalizing"]),
        (None, ["validating"] * 5),
    ],
)
def test_states_last_as_many_polls_as_the_settings_say(sdk: Sdk, polls: int | None, seen: list[str]) -> None:
    with EmbeddingsServer(ServerConfig(polls_per_state=polls)) as server:
        client = sdk(server)
        batch = submit(client, line("a", ["one"]))
        assert batch.status == "validating"
        assert [client.batches.retrieve(batch.id).status for _ in seen] == seen


def test_a_created_batch_nobody_heard_of_is_found_in_the_list(
    server: EmbeddingsServer, client: openai.OpenAI
) -> None:
    server.script([reset_after(), status(500)], endpoint="batches")
    with pytest.raises(openai.APIConnectionError):
        submit(client, line("a", ["one"]))
    with pytest.raises(openai.InternalServerError):
        submit(client, line("a", ["one"]))
    assert [batch.status for batch in client.batches.list()] == ["validating"]
    assert server.books.batch_times_submitted == {digest_of("one"): 1}
    assert server.books.others["batches"] == {"reset": 1, "500": 1, "200": 1}


def test_an_upload_nobody_heard_of_is_found_in_the_list(server: EmbeddingsServer, client: openai.OpenAI) -> None:
    server.script([reset_after()], endpoint="files")
    with pytest.raises(openai.APIConnectionError):
        client.files.create(file=("input.jsonl", line("a", ["one"])), purpose="batch")
    assert [file.filename for file in client.files.list()] == ["input.jsonl"]


def test_the_order_of_the_results_is_not_that_of_the_requests(client: openai.OpenAI) -> None:
    batch = finish(client, submit(client, *(line(str(number), ["x"]) for number in range(6))))
    found = list(results(client, batch.output_file_id))
    assert found != sorted(found)
    assert sorted(found) == ["0", "1", "2", "3", "4", "5"]
