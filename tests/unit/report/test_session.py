"""The records of a session, rebuilt from its report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from reported import broken, changed, check, session, verdict, whole

from pytest_trainability.records.session import SessionRecord
from pytest_trainability.report.document import document, rendered
from pytest_trainability.report.explain import explain_lines
from pytest_trainability.report.session import session_of


def again(found: SessionRecord) -> SessionRecord:
    return session_of(json.loads(rendered(document(found))))


def test_records_are_rebuilt_from_a_report() -> None:
    sent = session(check("passed", verdict()), broken(), changed(), required=2, exit_status=1)
    assert repr(again(sent)) == repr(sent)


def test_a_report_of_what_was_rebuilt_is_the_same() -> None:
    once = document(whole())
    assert document(session_of(once)) == once


@pytest.mark.parametrize("change", [{"fixed": True}, {"reproduce": ""}, {"device": "cuda:1", "seeds_requested": (5,)}])
def test_commands_get_their_seeds_and_device_once(change: dict[str, object]) -> None:
    sent = broken(**change).record
    (received,) = again(session(broken(**change))).checks
    assert explain_lines(received.record, width=100) == explain_lines(sent, width=100)


def test_a_check_without_a_verdict_keeps_its_status() -> None:
    for asserted in (True, False):
        sent = session(check(asserted=asserted))
        assert again(sent).checks[0].status == sent.checks[0].status


def test_an_empty_session_stays_empty() -> None:
    empty = replace(session(), measured=0)
    assert again(empty) == empty
