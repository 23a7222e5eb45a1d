"""A server on this machine that speaks as much of OpenAI's protocol as a judge needs, by a script."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server sends; ``body`` None: a completion that says ``text``."""

    text: str = "Good. [[8]]"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0

    def content(self) -> bytes:
        message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": self.text}}]}
        return json.dumps(message).encode() if self.body is None else self.body


@dataclass
class JudgeServer:
    """Requests as they came: (path, headers, body)."""

    url: str
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for _, _, body in self.requests]


Script = Callable[[int, dict[str, Any]], Answer]


@contextlib.contextmanager
def judge_server(script: Script = lambda count, body: Answer()) -> Iterator[JudgeServer]:
    """Serve ``script(number of the request from 0, its body)`` until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = script(len(served.requests), body)
            served.requests.append((self.path, dict(self.headers), body))
            time.sleep(answer.seconds)
            content = answer.content()
            with contextlib.suppress(OSError):  # whoever asked may have left
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
