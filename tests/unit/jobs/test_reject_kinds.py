from __future__ import annotations

from ragingest.reject_kinds import REJECT_KINDS, advice_for
from tests.unit.docs.reading import reject_kinds


def test_every_kind_that_the_code_gives_has_its_advice_and_no_other() -> None:
    assert set(REJECT_KINDS) == reject_kinds()
    assert all(all(kind) for kind in REJECT_KINDS.values())


def test_a_kind_of_another_version_has_some_advice_too() -> None:
    assert advice_for("of_the_future") == "see the message"
