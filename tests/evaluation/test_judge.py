"""The judge's client against a server that speaks its protocol, well and badly."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from landscape.errors import UsageError
from landscape.evaluation.judge import KEY_VARIABLE, Judge, JudgeError
from tests.evaluation.judge_stub import Answer, JudgeServer, judge_server

MESSAGES = [{"role": "user", "content": "Grade this."}]
SECRET = "sk-very-secret"


def scripted(*answers: Answer) -> Any:
    """One after the other, the last for ever."""
    return lambda count, body: answers[min(count, len(answers) - 1)]


def ask(server: JudgeServer, **options: Any) -> tuple[str, list[float]]:
    waits: list[float] = []
    return Judge(server.url, "gpt", **options).ask(MESSAGES, waits.append), waits


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with judge_server(scripted(Answer("[[7]]"))) as server:
        assert ask(server) == ("[[7]]", [])
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert body == {"model": "gpt", "messages": MESSAGES, "temperature": 0}
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("value", [None, "", " "])
def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(KEY_VARIABLE, value)
    with judge_server() as server:
        ask(server)
    assert "Authorization" not in server.requests[0][1]


NO_CHOICE = Answer(body=b'{"choices": []}')
TRANSIENT: list[tuple[Sequence[Answer], list[float]]] = [
    ([Answer(status=429, headers={"Retry-After": "3"}), Answer()], [3.0]),
    ([Answer(status=429, headers={"Retry-After": "9999"}), Answer()], [60.0]),
    ([Answer(status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), Answer()], [1.0]),
    ([Answer(status=500), Answer(status=503), Answer(status=502), Answer()], [1.0, 2.0, 4.0]),
    ([Answer(body=b"{'not': json"), Answer()], [1.0]),
    ([Answer(body=b"[" * 100_000), Answer()], [1.0]),
    ([NO_CHOICE, Answer()], [1.0]),
    ([Answer(body=b'"text"'), Answer()], [1.0]),
    ([Answer(body=b'{"choices": [{"message": {"content": null}}]}'), Answer()], [1.0]),
    ([Answer(text="  "), Answer()], [1.0]),
    # The connection closes before what was promised has come.
    ([Answer(body=b'{"choices": [{"mess', headers={"Content-Length": "999"}), Answer()], [1.0]),
]


@pytest.mark.parametrize(("answers", "expected"), TRANSIENT)
def test_what_is_tried_again(answers: Sequence[Answer], expected: list[float]) -> None:
    with judge_server(scripted(*answers)) as server:
        assert ask(server) == ("Good. [[8]]", expected)
    assert len(server.requests) == len(answers)


GIVEN_UP = [
    (Answer(status=500, body=b'{"error": {"message": "overloaded"}}'), r"500 .*: overloaded \(after 3 attempts\)"),
    (Answer(body=b"<html>"), r"the answer is not JSON \(after 3 attempts\)"),
    (NO_CHOICE, r"no choices\[0\]\.message\.content \(after 3 attempts\)"),
    (Answer(text=""), r"the answer is empty \(after 3 attempts\)"),
]


@pytest.mark.parametrize(("answer", "message"), GIVEN_UP)
def test_what_is_given_up(answer: Answer, message: str) -> None:
    with judge_server(scripted(answer)) as server, pytest.raises(JudgeError, match=message):
        ask(server, attempts=3)
    assert len(server.requests) == 3


REFUSED = [(400, "no such model"), (401, "wrong key"), (403, "not you"), (404, "no such page"), (307, "go elsewhere")]


@pytest.mark.parametrize(("status", "said"), REFUSED)
def test_what_is_not_tried_again(status: int, said: str) -> None:
    body = json.dumps({"error": {"message": said}}).encode()
    answer = Answer(status=status, body=body, headers={"Location": "http://127.0.0.1:9/"})
    with judge_server(scripted(answer)) as server, pytest.raises(JudgeError, match=f"{status} .*: {said}"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()
    with judge_server(scripted(Answer(status=status, body=body))) as server, pytest.raises(JudgeError) as caught:
        ask(server, attempts=1)
    assert SECRET not in str(caught.value)
    assert "Incorrect API key provided: …" in str(caught.value)


def test_a_judge_that_takes_too_long() -> None:
    with judge_server(scripted(Answer(seconds=0.5))) as server, pytest.raises(JudgeError, match="timed out"):
        ask(server, timeout=0.1, attempts=2)
    assert len(server.requests) == 2


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(JudgeError, match=r"refused.*\(after 2 attempts\)"):
        Judge(f"http://127.0.0.1:{port}", "gpt", attempts=2).ask(MESSAGES, lambda seconds: None)


USAGE: list[tuple[dict[str, str], str]] = [
    ({"url": "api.openai.com/v1"}, "'api.openai.com/v1' is no address such as"),
    ({"url": "file:///etc/passwd"}, "is no address such as"),
    ({"url": "https://me:pass@host/v1"}, "leave out user, password and query"),
    ({"url": f"https://host/v1?key={SECRET}"}, "leave out user, password and query"),
    ({"url": "http://judge.example/v1"}, "would travel unencrypted to judge.example; use https"),
    ({"model": ""}, "--judge-model: name the judge's model"),
    ({"key_variable": SECRET}, "takes the name of an environment variable, not the key"),
]


@pytest.mark.parametrize(("changes", "message"), USAGE)
def test_bad_settings(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with pytest.raises(UsageError, match=message) as caught:
        Judge(**{"url": "https://host/v1", "model": "gpt", **changes}).checked()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://judge.example/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:1/v1"]
)
def test_where_a_key_may_go(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    judge = Judge(url, "gpt")
    assert judge.checked() is judge
    assert SECRET not in repr(judge)


def test_without_a_key_the_way_need_not_be_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    Judge("http://judge.example/v1", "gpt").checked()
