"""A judge behind any endpoint that speaks OpenAI's chat protocol: asked patiently, its key never written anywhere."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from landscape.errors import LandscapeError, UsageError

KEY_VARIABLE = "LANDSCAPE_JUDGE_KEY"
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT = 60.0
_MOST_BYTES = 1 << 22
_NAME = re.compile(r"[A-Za-z_]\w*")


class JudgeError(LandscapeError):
    """The judge refused, or did not answer in spite of every attempt."""


class _Transient(Exception):
    """Worth another attempt."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Judge:
    """Where the judge is and how long it is waited for.

    Attributes:
        url: the API's base, such as ``https://api.openai.com/v1``; ``/chat/completions`` is added.
        key_variable: the environment variable that holds the key; unset, none is sent.
        timeout: seconds for one answer.
        attempts: at most, with waits of 1, 2, 4 … seconds between, or what the server asks for, 60 at most.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    timeout: float = 120.0
    attempts: int = 6

    def checked(self) -> Judge:
        """Itself.

        Raises:
            UsageError: no http address, one with a name, password or query in it, or a key that would travel in the
                clear.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--judge-url: {self.url!r} is no address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # Not repeated: what is in it may be a secret.
            raise UsageError(
                f"--judge-url: leave out user, password and query; the key belongs in ${self.key_variable}"
            )
        if not self.model:
            raise UsageError("--judge-model: name the judge's model, e.g. --judge-model gpt-4")
        if not _NAME.fullmatch(self.key_variable):
            # Not repeated either: somebody may have given the key itself.
            raise UsageError("--judge-key-variable: takes the name of an environment variable, not the key")
        if self._key and parts.scheme == "http" and not _is_here(parts.hostname):
            raise UsageError(
                f"--judge-url: the key in ${self.key_variable} would travel unencrypted to {parts.hostname}; use https "
                "or unset it"
            )
        return self

    def ask(self, messages: list[dict[str, str]], sleep: Callable[[float], None] = time.sleep) -> str:
        """The judge's answer, at temperature 0.

        Raises:
            JudgeError: a refusal (wrong key, unknown model), or no usable answer after every attempt.
        """
        body = {"model": self.model, "messages": messages, "temperature": 0}
        attempt = 1
        while True:
            try:
                return self._ask_once(body)
            except _Transient as problem:
                if attempt >= self.attempts:
                    raise JudgeError(f"judge: {problem} (after {attempt} attempts)") from None
                sleep(min(2.0 ** (attempt - 1) if problem.wait is None else problem.wait, _LONGEST_WAIT))
                attempt += 1

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _ask_once(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                content = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                said = self._clean(_message(error.read(_MOST_BYTES)))
            text = f"{error.code} {error.reason}{f': {said}' if said else ''}"
            if error.code in _AGAIN:
                raise _Transient(text, _seconds(error.headers.get("Retry-After"))) from None
            raise JudgeError(f"judge: {self.url} answered {text}") from None
        except (OSError, http.client.HTTPException) as error:  # no connection, a timeout, a broken answer
            reason = getattr(error, "reason", None) or error
            raise _Transient(self._clean(f"{self.url}: {reason or type(error).__name__}")) from None
        return _text(content)

    def _clean(self, text: str) -> str:
        """On one line, short, and without the key, which servers like to repeat."""
        text = " ".join(text.split())
        return (text.replace(self._key, "…") if self._key else text)[:300]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host; it becomes an error that shows the status."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _text(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise _Transient("the answer is not JSON") from None
    except (KeyError, IndexError, TypeError):
        raise _Transient("the answer has no choices[0].message.content") from None
    if not isinstance(text, str) or not text.strip():
        raise _Transient("the answer is empty")
    return text


def _message(content: bytes) -> str:
    """What an error says, in OpenAI's form or another."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(text)
        error = value.get("error", value)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        return text


def _seconds(header: str | None) -> float | None:
    """Retry-After as seconds; its other form, a date, is left to our own waits."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
