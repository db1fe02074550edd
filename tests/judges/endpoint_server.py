"""A chat endpoint on this machine that behaves as a test says, faults included."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass
class Reply:
    """What the server does with a request."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    # Close the connection after this many bytes of the body, None for all.
    cut_after: int | None = None
    seconds: float = 0.0


@dataclass
class Request:
    """A request as the server sees it; `number` counts all from 1, `attempt` those of its key."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    number: int
    attempt: int

    @property
    def item(self) -> str:
        """What is asked about."""
        return self.headers["idempotency-key"]

    @property
    def tag(self) -> str:
        return re.search(r"T[0-9a-f]{12}", self.body["messages"][0]["content"])[0]

    @property
    def quoted(self) -> str:
        return self.body["messages"][1]["content"]


def completion(content: Any, usage: Any = USAGE, **choice: Any) -> Reply:
    message = {"role": "assistant", "content": content}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message, **choice}]
    if usage is not None:
        body["usage"] = usage
    return Reply(text=json.dumps(body))


def grade(request: Request, **grades: int) -> Reply:
    return completion(json.dumps({"tag": request.tag, **(grades or {"score": 3})}))


def failure(status: int, code: str | None = None, **headers: str) -> Reply:
    error = {"message": "it said: SECRET PROMPT", "type": "error", "param": None, "code": code}
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return Reply(status, json.dumps({"error": error}), headers)


class Endpoint:
    """The server; it remembers all requests, and which of them it has answered well."""

    def __init__(self, behave: Callable[[Request], Reply]) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.served: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body in one packet; else each reply waits for a delayed acknowledgement.
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                endpoint.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def handle(self, http: Any) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        item = http.headers["Idempotency-Key"]
        with self.lock:
            attempt = 1 + sum(r.item == item for r in self.requests[-2000:])
            headers = {name.lower(): value for name, value in http.headers.items()}
            request = Request(body, headers, http.path, len(self.requests) + 1, attempt)
            self.requests.append(request)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reply = self.behave(request)
            time.sleep(reply.seconds)
        finally:
            with self.lock:
                self.under_way -= 1
        if reply.status == 200 and reply.cut_after is None:
            with self.lock:
                self.served[item] += 1
        data = reply.text.encode()
        http.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(data)))
        http.end_headers()
        http.wfile.write(data[: reply.cut_after])
        http.wfile.flush()
        if reply.cut_after is not None:
            http.connection.shutdown(socket.SHUT_RDWR)
            http.close_connection = True


@contextmanager
def serving(behave: Callable[[Request], Reply]):
    endpoint = Endpoint(behave)
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
