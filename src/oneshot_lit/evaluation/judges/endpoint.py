"""`EndpointJudge`: a model behind an OpenAI-compatible chat endpoint grades by a rubric."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Judge, Verdict
from oneshot_lit.evaluation.judges.cache import NANOS, VerdictCache
from oneshot_lit.evaluation.judges.rubrics import Rubric

# Fields of a request that are not for the user to set; `n` would pay for replies nobody reads.
_OWN_OPTIONS = ("model", "messages", "stream", "n")
# Without a user or a query, which may hold a secret.
_ADDRESS = re.compile(r"https?://([\w.-]+|\[[\w:]+\])(:\d{1,5})?(/[\w.~/-]*)?", re.ASCII)


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
        cache: str = "runs/judge_cache",
        max_requests: int | None = None,
        max_cost: float | None = None,
        price_per_million_input: float | None = None,
        price_per_million_output: float | None = None,
        metric: str | None = None,
        name: str = "endpoint",
    ) -> None:
        super().__init__(name, f"{rubric.version}:{model}", (metric or rubric.metric,))
        prices = (price_per_million_input, price_per_million_output)
        if min(concurrency, attempts) < 1 or not 0 < timeout < math.inf:
            raise OneShotError(
                "judge: concurrency and attempts must be at least 1, timeout above 0 and finite."
            )
        if not all(n is None or 0 <= n < math.inf for n in (max_requests, max_cost, *prices)):
            raise OneShotError("judge: a cap or a price must not be negative.")
        if (prices[0] is None) != (prices[1] is None):
            raise OneShotError("judge: give both prices per million tokens, or none.")
        if base_url is not None and not _ADDRESS.fullmatch(base_url):
            raise OneShotError(
                "judge.base_url: give an address such as http://localhost:8000/v1, without a user "
                "or a query; the key belongs into the environment (judge.api_key_env)."
            )
        if api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
            # It may be the key itself, so it is not shown.
            raise OneShotError("judge.api_key_env: give the NAME of a variable, not the key.")
        self.options = {"temperature": 0, "max_tokens": 64} if options is None else dict(options)
        for key in _OWN_OPTIONS:
            if key in self.options:
                raise OneShotError(f"judge.options: '{key}' is not for options; leave it out.")
        if max_cost is not None and (prices[0] is None or not self._reply_tokens()):
            raise OneShotError(
                "judge.max_cost: needs price_per_million_input and price_per_million_output, and "
                "max_tokens or max_completion_tokens in judge.options, to bound the cost."
            )
        self.model, self.rubric, self.base_url = model, rubric, base_url
        self.api_key_env, self.cache, self.prices = api_key_env, cache, prices
        self.concurrency, self.attempts, self.timeout = concurrency, attempts, timeout
        self.max_requests, self.max_cost = max_requests, max_cost
        self._spent: tuple[int, int] | None = None

    @property
    def where(self) -> str:
        """The endpoint, for a message."""
        return self.base_url or "the endpoint"

    @property
    def shown_variable(self) -> str:
        """The variable of the key for a message, unless its name may be a key after all."""
        name = self.api_key_env or ""
        return name if re.fullmatch("[A-Z_]{1,40}", name) else "that judge.api_key_env names"

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Return the verdicts in order."""
        given = dict(self.verdicts(answers))
        return [given[n] for n in range(len(answers))]

    def verdicts(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield every verdict as it arrives.

        Raises:
            SpendingCapError: when a cap is reached; what is under way is waited for and kept.
            OneShotError: for a missing package or key, or what the endpoint refuses for good.
        """
        from oneshot_lit.evaluation.judges.asking import Asker

        try:
            import diskcache  # noqa: F401
            import openai  # noqa: F401
        except ImportError as error:
            raise OneShotError(
                f"judge: {error.name} is missing; pip install 'oneshot-lit[judges]'."
            ) from error
        key = self._key()
        cache = VerdictCache(self.cache, self.max_requests, self.max_cost)
        try:
            yield from Asker(self, key, cache).ask(answers)
        finally:
            self._spent = cache.spent()
            cache.close()

    def settings(self) -> dict[str, Any]:
        """Return what may change a reply."""
        return {"options": self.options}

    def facts(self) -> dict[str, Any]:
        """Return the requests and the cost of all runs with the cache."""
        facts: dict[str, Any] = {"model": self.model}
        if self._spent is not None:
            facts["spent"] = {"requests": self._spent[0]}
            if self.prices[0] is not None:
                facts["spent"]["cost"] = self._spent[1] / NANOS
        return facts

    def cache_key(self, messages: list[dict[str, str]]) -> str:
        """Return the key of a request: everything that decides the reply, but not who gives it."""
        parts = [self.version, self.metrics, self.options, messages]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def cost_nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return what so many tokens cost in billionths, rounded up."""
        price_in, price_out = (price or 0.0 for price in self.prices)
        # A price for a million tokens is thousands of billionths for one.
        return math.ceil((prompt_tokens * price_in + completion_tokens * price_out) * 1000)

    def bound_nanos(self, length: int) -> int:
        """Return the most that a request of so many bytes may cost: a token has at least one."""
        return self.cost_nanos(length, self._reply_tokens())

    def _reply_tokens(self) -> int:
        limits = [self.options.get(key) for key in ("max_tokens", "max_completion_tokens")]
        return max((n for n in limits if type(n) is int and n > 0), default=0)

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        # Printable ASCII, as a header takes it; a client's own error would show the key.
        if not re.fullmatch("[!-~]+", key):
            fault = "holds a space or a letter that no key has" if key else "is not set"
            raise OneShotError(
                f"judge.api_key_env: the environment variable {self.shown_variable} {fault}; "
                "export your key in it, or give null for a server without keys."
            )
        return key
