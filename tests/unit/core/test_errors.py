from __future__ import annotations

import pytest

from ragingest.errors import (
    ExitCode,
    JobLockedError,
    RagingestError,
    RejectedError,
    SettingsChangedError,
    TerminalError,
    TooManyErrorsError,
    TransientError,
    UsageError,
)


def test_every_exit_code_has_a_meaning_of_its_own() -> None:
    meanings = [code.meaning for code in ExitCode]
    assert all(meanings)
    assert len(set(meanings)) == len(meanings)


def test_exit_codes_are_frozen() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "REJECTS": 1,
        "USAGE": 2,
        "TOO_MANY_ERRORS": 3,
        "FAILED": 4,
        "LOCKED": 5,
        "MISMATCH": 6,
        "WAITING": 75,
        "SIGINT": 130,
        "SIGTERM": 143,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (TooManyErrorsError, 3),
        (TerminalError, 4),
        (JobLockedError, 5),
        (SettingsChangedError, 6),
    ],
)
def test_every_kind_of_error_has_its_own_exit_code(error: type[RagingestError], code: int) -> None:
    raised = error("what happened", "what to do")
    assert raised.exit_code == code
    assert (str(raised), raised.message, raised.hint) == ("what happened", "what happened", "what to do")


def test_errors_for_the_retry_layer_and_for_one_record_are_not_errors_for_people() -> None:
    assert not issubclass(TransientError, RagingestError)
    assert not issubclass(RejectedError, RagingestError)
    assert not issubclass(TransientError, RejectedError)


def test_a_transient_error_carries_what_the_server_asked_for() -> None:
    assert TransientError("busy", 2.5).retry_after == 2.5
    assert TransientError("busy").retry_after is None


def test_a_rejected_error_carries_a_word_for_programs_and_a_sentence_for_people() -> None:
    error = RejectedError("empty_text", "the text is empty")
    assert (error.kind, str(error)) == ("empty_text", "the text is empty")
