"""`EndpointJudge`: a model behind an OpenAI-compatible chat endpoint grades by a rubric."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Judge, Verdict
from oneshot_lit.evaluation.judges.cache import NANOS, Paid, VerdictCache
from oneshot_lit.evaluation.judges.rubrics import Rubric

_PACKAGES = ("openai", "tenacity", "diskcache")
_OWN_OPTIONS = ("model", "messages", "stream", "n", "api_key", "base_url")


# Names of variables; keys of printable ASCII, as a header takes them.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME_LIKE = re.compile(r"[A-Z_]{1,40}")
_KEY = re.compile(r"[!-~]+")


class EndpointJudge(Judge):
    """A model behind an OpenAI-compatible chat endpoint, asked with a rubric.

    Verdicts lie in the cache as soon as they arrive, so a killed run goes on where it was. A reply
    that is not exactly what the rubric asks for could not be judged (`malformed`); it is paid for
    and therefore kept, too. An answer whose retries are used up is asked about in the next run.

    Args:
        model: Name of the judging model at the endpoint.
        rubric: What is asked, and how the reply is read.
        base_url: The endpoint, such as `http://localhost:8000/v1`; that of the client if not given.
        api_key_env: Environment variable that holds the key; null for a server without keys.
        options: Further fields of each request. One of `max_tokens` and `max_completion_tokens`
            bounds the reply, and with it the cost.
        concurrency: Requests under way at once.
        attempts: How often one answer is asked about before it is given up in this run.
        timeout: Seconds to wait for a reply.
        longest_wait: Longest pause in seconds between attempts; if the server demands a longer one
            (`Retry-After`), the answer is given up in this run.
        cache: Folder of the verdicts and of the spending; of all runs that name it.
        max_requests: Stop before this many requests are exceeded, failed ones included.
        max_cost: Stop before this cost is exceeded, in the currency of the prices.
        price_per_million_input: Price of a million prompt tokens.
        price_per_million_output: Price of a million reply tokens.
        metric: Name of the metric, if not that of the rubric.
        name: Name of the judge in files and results.
    """

    keeps_verdicts = True
    passing = frozenset(
        ("rate_limited", "server_error", "timed_out", "cut_connection", "bad_response")
    )

    def __init__(
        self,
        model: str,
        rubric: Rubric,
        base_url: str | None = None,
        api_key_env: str | None = "OPENAI_API_KEY",
        options: dict[str, Any] | None = None,
        concurrency: int = 8,
        attempts: int = 6,
        timeout: float = 60.0,
        longest_wait: float = 120.0,
        cache: str = "runs/judge_cache",
        max_requests: int | None = None,
        max_cost: float | None = None,
        price_per_million_input: float | None = None,
        price_per_million_output: float | None = None,
        metric: str | None = None,
        name: str = "endpoint",
    ) -> None:
        super().__init__(name, f"{rubric.version}:{model}", (metric or rubric.metric,))
        self.model = model
        self.rubric = rubric
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.options = {"temperature": 0, "max_tokens": 64} if options is None else dict(options)
        self.concurrency = concurrency
        self.attempts = attempts
        self.timeout = timeout
        self.longest_wait = longest_wait
        self.cache = cache
        self.max_requests = max_requests
        self.max_cost = max_cost
        self.prices = (price_per_million_input, price_per_million_output)
        self._check()
        # Of this process: requests begun, verdicts from the cache; of its verdicts: tokens, cost.
        self._counts = dict.fromkeys(
            ("requests", "from_cache", "prompt_tokens", "completion_tokens", "without_usage"), 0
        )
        self._cost_nanos = 0
        self._spent: tuple[int, int] | None = None

    def _check(self) -> None:
        endless = not math.isfinite(self.timeout) or not math.isfinite(self.longest_wait)
        if min(self.concurrency, self.attempts) < 1 or self.timeout <= 0 or self.longest_wait < 0:
            endless = True
        if endless:
            raise OneShotError(
                "judge: concurrency and attempts must be at least 1, timeout above 0 and "
                "longest_wait not negative, both of them finite."
            )
        for key in _OWN_OPTIONS:
            if key in self.options:
                raise OneShotError(f"judge.options: '{key}' is not for options; leave it out.")
        for key, cap in (("max_requests", self.max_requests), ("max_cost", self.max_cost)):
            if cap is not None and not 0 <= cap < float("inf"):
                raise OneShotError(f"judge.{key} must not be negative, not {cap}.")
        for price in self.prices:
            if price is not None and not 0 <= price < float("inf"):
                raise OneShotError(f"judge: a price must not be negative, not {price}.")
        if (self.prices[0] is None) != (self.prices[1] is None):
            raise OneShotError("judge: give both prices per million tokens, or none.")
        if self.max_cost is not None and (self.prices[0] is None or self._reply_tokens() is None):
            raise OneShotError(
                "judge.max_cost: needs price_per_million_input and price_per_million_output, and "
                "max_tokens or max_completion_tokens in judge.options; without them no bound is "
                "known."
            )
        try:
            json.dumps(self.options, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise OneShotError(
                "judge.options: holds what JSON cannot, such as .nan or a date; give texts and "
                "finite numbers."
            ) from error
        if self.base_url is not None:
            check_address(self.base_url)
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            # It may be the key itself, so it is not shown.
            raise OneShotError("judge.api_key_env: give the NAME of a variable, not the key.")

    @property
    def shown_variable(self) -> str:
        """The variable of the key for a message, unless its name may be a key after all."""
        name = self.api_key_env or ""
        known = name in os.environ or _NAME_LIKE.fullmatch(name)
        return name if known else "that judge.api_key_env names"

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Return the verdicts in order."""
        found = dict(self.verdicts(answers))
        return [found[n] for n in range(len(answers))]

    def verdicts(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield every verdict as it arrives.

        Raises:
            SpendingCapError: when a cap is reached; what is under way is waited for and kept.
            OneShotError: for a missing package or key, or what the endpoint refuses for good.
        """
        _require_packages()
        from oneshot_lit.evaluation.judges.asking import Asker

        key = self._key()
        cache = VerdictCache(self.cache, self.max_requests, self.max_cost)
        try:
            asker = Asker(self, key, cache)
            yield from asker.ask(answers)
        finally:
            self._spent = cache.spent()
            cache.close()

    def settings(self) -> dict[str, Any]:
        """Return what may change a reply."""
        return {"options": self.options}

    def facts(self) -> dict[str, Any]:
        """Return requests, tokens and cost."""
        facts: dict[str, Any] = {
            "model": self.model,
            "usage": dict(self._counts),
        }
        priced = self.prices[0] is not None
        if priced:
            facts["usage"]["cost"] = self._cost_nanos / NANOS
        if self._spent is not None:
            # Of all runs with this cache, reservations of killed ones included.
            facts["spent"] = {"requests": self._spent[0]}
            if priced:
                facts["spent"]["cost"] = self._spent[1] / NANOS
        return facts

    # ------------------------------------------------------------- for the asker

    def cache_key(self, messages: list[dict[str, str]]) -> str:
        """Return the key of a request: everything that decides the reply, but not who gives it."""
        parts = [self.version, self.metrics, self.options, messages]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def count(self, paid: Paid | None = None, *, requests: int = 0, cached: bool = False) -> None:
        """Add to the counts that `facts` returns."""
        self._counts["requests"] += requests
        if paid is None:
            return
        self._counts["from_cache"] += cached
        self._counts["prompt_tokens"] += paid.prompt_tokens or 0
        self._counts["completion_tokens"] += paid.completion_tokens or 0
        self._counts["without_usage"] += paid.prompt_tokens is None
        self._cost_nanos += paid.cost_nanos

    def cost_nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return what so many tokens cost, rounded up."""
        price_in, price_out = (price or 0.0 for price in self.prices)
        # Dollars for a million tokens are thousands of billionths for one.
        return math.ceil((prompt_tokens * price_in + completion_tokens * price_out) * 1000)

    def bound_nanos(self, messages: list[dict[str, str]]) -> int:
        """Return the most that a request may cost: no token is shorter than one byte."""
        letters = sum(len(m["content"].encode()) + 32 for m in messages) + 64
        return self.cost_nanos(letters, self._reply_tokens() or 0)

    def _reply_tokens(self) -> int | None:
        limits = [self.options.get(k) for k in ("max_tokens", "max_completion_tokens")]
        given = [limit for limit in limits if type(limit) is int and limit > 0]
        return max(given, default=None)

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise OneShotError(
                f"judge.api_key_env: the environment variable {self.shown_variable} is not set; "
                "export your key in it, or give null for a server without keys."
            )
        if not _KEY.fullmatch(key):
            # A client would refuse to send it, or raise an error that shows it.
            raise OneShotError(
                f"judge.api_key_env: the key in {self.shown_variable} holds a space, a line end or "
                "a letter that no key has; export it anew."
            )
        return key


def check_address(url: str) -> None:
    """Refuse an address that no client can use, or that may hold a secret; it is not shown.

    Raises:
        OneShotError: naming the key.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # A port that is no number or too large, a bracket without its other one.
        usable, parts = False, None
    if not usable or not re.fullmatch(r"[!-~]+", url) or parts is None:
        raise OneShotError("judge.base_url: give an address such as http://localhost:8000/v1.")
    if "@" in parts.netloc or parts.query:
        raise OneShotError(
            "judge.base_url: holds a user or a query, which may be a secret; give the key in the "
            "environment (judge.api_key_env)."
        )


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise OneShotError(
            f"judge: the package {missing[0]} is missing; install the extra: "
            "pip install 'oneshot-lit[judges]'."
        )
