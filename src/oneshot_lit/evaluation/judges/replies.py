"""What an endpoint's reply says: the text, the tokens it took, or why there is none."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from oneshot_lit.errors import OneShotError


class PassingError(Exception):
    """A failure that another attempt may mend.

    `pause` is what the server asks for, in seconds; `sent` is False if it never had the request.
    """

    def __init__(self, reason: str, pause: float = 0.0, sent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.sent = sent


class RefusedError(Exception):
    """The endpoint refuses this one request."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Reply:
    """What of a reply matters: its text (None if the endpoint held it back), and the tokens."""

    text: str | None
    reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def retry_after(value: str | None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for: a number or a date; else 0."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return 0.0
        then = then if then.tzinfo is not None else then.replace(tzinfo=timezone.utc)
        seconds = (then - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def read_reply(text: str) -> Reply:
    """Read the body of a chat completion.

    Raises:
        PassingError: if it is none, as from a proxy that answers in the server's place.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"].get("content")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PassingError("bad_response") from error
    if content is not None and not isinstance(content, str):
        raise PassingError("bad_response")
    filtered = choice.get("finish_reason") == "content_filter"
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counted = all(type(count) is int and 0 <= count < 10**12 for count in tokens)
    return Reply(
        None if filtered else content,
        "content_filter" if filtered else None,
        *(tokens if counted else (None, None)),
    )


class SpendingCapError(OneShotError):
    """A cap on requests or cost is reached; what was judged is kept."""

    code = 3
