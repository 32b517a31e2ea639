"""The job server right after `ray start`: it says to try again later, until its node's agent runs."""

from __future__ import annotations

import pytest

from kt_ray.errors import ResourceError
from kt_ray.jobs import client
from kt_ray.jobs.client import when_ready

LATER = "Request failed with status code 500: No available agent to submit job, please try again later."


def test_what_is_temporary_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.0)
    answers = iter([RuntimeError(LATER), RuntimeError(LATER), "job-1"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    assert when_ready(call) == "job-1"
    assert [record.getMessage() for record in caplog.records] == [
        "the job server is not ready yet, trying again for 60 s"
    ]


def test_what_stays_is_told_with_its_usual_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(client, "READY_SECONDS", 0.0)

    def call() -> str:
        raise RuntimeError(LATER)

    with pytest.raises(ResourceError, match=r"another Ray on the same machine may hold its port"):
        when_ready(call)


def test_another_refusal_is_not_repeated() -> None:
    def call() -> str:
        raise RuntimeError("Request failed with status code 400: bad entrypoint")

    with pytest.raises(RuntimeError, match="bad entrypoint"):
        when_ready(call)
