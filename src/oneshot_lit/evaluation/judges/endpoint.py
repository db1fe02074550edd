"""`EndpointJudge`: a model behind an OpenAI-compatible chat endpoint grades by a rubric."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Judge, Verdict
from oneshot_lit.evaluation.judges.rubrics import Rubric
from oneshot_lit.evaluation.judges.verdict_file import VerdictFile

# Without a user or a query, which may hold a secret.
_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s?#]*)?", re.ASCII)
# Refusals of one answer, refusals of the key, and bad requests, which may be the answer's fault;
# so many of them before anything was served are not.
_OF_ONE_ANSWER = {"content_filter": "content_filter", "context_length_exceeded": "too_long"}
_OF_THE_KEY = {401, 402, 403, 407, "insufficient_quota", "invalid_api_key"}
_BAD_REQUEST, _REFUSED_AT_FIRST = (400, 413, 422), 5


class EndpointJudge(Judge):
    """A model behind an OpenAI-compatible chat endpoint, asked with a rubric.

    Verdicts are in the cache as soon as they arrive, so a killed run goes on where it was. A reply
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
        cache: File of the verdicts and of the spending of all runs that name it.
        max_requests: Stop before this many requests are exceeded, failed ones included.
        max_cost: Stop before this cost is exceeded, in the currency of the prices.
        price_per_million_input: Price of a million prompt tokens.
        price_per_million_output: Price of a million reply tokens.
        metric: Name of the metric, if not that of the rubric.
        name: Name of the judge in files and results.
    """

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
        cache: str = "runs/judge_cache.jsonl",
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
        if base_url is not None and not _ADDRESS.fullmatch(base_url):
            raise OneShotError(
                "judge.base_url: give an address such as http://localhost:8000/v1, without a user "
                "or a query; the key belongs into the environment (judge.api_key_env)."
            )
        if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
            # It may be the key itself, so it is not shown.
            raise OneShotError(
                "judge.api_key_env: give the NAME of a variable, in capitals, not the key."
            )
        self.options = {"temperature": 0, "max_tokens": 64} if options is None else dict(options)
        limits = [self.options.get(key) or 0 for key in ("max_tokens", "max_completion_tokens")]
        self.reply_tokens = max(limits)
        if max_cost is not None and (None in prices or not self.reply_tokens):
            raise OneShotError(
                "judge.max_cost: needs price_per_million_input and price_per_million_output, and "
                "max_tokens or max_completion_tokens in judge.options, to bound the cost."
            )
        self.model, self.rubric, self.base_url = model, rubric, base_url
        self.api_key_env, self.prices = api_key_env, prices
        self.concurrency, self.attempts, self.timeout = concurrency, attempts, timeout
        self.cache = VerdictFile(cache, max_requests, max_cost)
        # All of a chunk are asked about before the next one begins.
        self.chunk = 32 * concurrency
        # What ends the run; nothing is sent after it.
        self._end: Exception | None = None
        self._served, self._refused = False, 0

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Ask about every answer that the cache does not hold.

        After an interrupt, replies under way are waited for and kept; a second one ends the wait.

        Raises:
            SpendingCapError: when a cap is reached; what is under way is waited for and kept.
            OneShotError: for a missing package or key, or what the endpoint refuses for good.
        """
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise OneShotError(
                "judge: openai is missing; pip install 'oneshot-lit[judges]'."
            ) from error
        key = self._key()
        self.cache.load()
        return asyncio.run(self._ask_all(answers, key))

    def settings(self) -> dict[str, Any]:
        """Return what may change a reply."""
        return {"options": self.options}

    def facts(self) -> dict[str, Any]:
        """Return the requests and the cost of all runs with the cache."""
        spent = {"requests": self.cache.requests, "cost": round(self.cache.cost, 9)}
        return {"model": self.model, "spent": spent}

    def cache_key(self, messages: list[dict[str, str]]) -> str:
        """Return the key of a request: everything that decides the reply, but not who gives it."""
        parts = [self.version, self.metrics, self.options, messages]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return what so many tokens cost."""
        price_in, price_out = (price or 0.0 for price in self.prices)
        return (prompt_tokens * price_in + reply_tokens * price_out) / 1e6

    def most(self, request: Any) -> float:
        """Return the most that a request may cost: each of its tokens has at least one byte."""
        return self.cost(len(request.content), self.reply_tokens)

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        # Printable ASCII, as a header takes it; a client's own error would show the key.
        if not re.fullmatch("[!-~]+", key):
            fault = "holds a space or a letter that no key has" if key else "is not set"
            raise OneShotError(
                f"judge.api_key_env: the environment variable {self.api_key_env} {fault}; "
                "export your key in it, or give null for a server without keys."
            )
        return key

    async def _ask_all(self, answers: Sequence[Answer], api_key: str) -> list[Verdict]:
        questions = [self.rubric.messages(answer) for answer in answers]
        keys = [self.cache_key(messages) for messages, _ in questions]
        free = asyncio.Semaphore(self.concurrency)
        self._end = None
        async with self._client(api_key) as client:
            # The same question is asked once.
            tasks = {
                key: asyncio.create_task(self._one(free, client, key, *question))
                for key, question in dict(zip(keys, questions, strict=True)).items()
            }
            try:
                await asyncio.wait(tasks.values())
            except asyncio.CancelledError:
                # What is under way is paid for, so it is waited for and kept.
                self._end = OneShotError("interrupted")
                await asyncio.wait(tasks.values(), timeout=self.timeout)
                raise
        if self._end is not None:
            raise self._end
        return [tasks[key].result() for key in keys]

    def _client(self, api_key: str) -> Any:
        import openai

        judge = self

        class MeteredClient(openai.DefaultAsyncHttpxClient):
            """Counts every request, retries included, with the most that it may cost."""

            async def send(self, request: Any, **options: Any) -> Any:
                try:
                    if judge._end is None:
                        judge.cache.reserve(judge.most(request))
                except (OneShotError, OSError) as error:
                    judge._end = error
                if judge._end is not None:
                    # No error of the client's, which would try again.
                    raise asyncio.CancelledError
                try:
                    response = await super().send(request, **options)
                except Exception as error:
                    if _is_unreached(error):
                        judge.cache.add(-1, -judge.most(request))
                    raise
                if response.is_error:
                    judge.cache.add(cost=-judge.most(request))
                return response

        return openai.AsyncOpenAI(
            api_key=api_key,
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.attempts - 1,
            http_client=MeteredClient(),
        )

    async def _one(
        self, free: Any, client: Any, key: str, messages: list[dict[str, str]], tag: str
    ) -> Verdict:
        """Return the verdict of the cache, or else of the endpoint; keep what ends the run."""
        async with free:
            if (verdict := self.cache.verdicts.get(key)) is None and self._end is None:
                try:
                    verdict = await self._ask(client, key, messages, tag)
                except Exception as error:
                    self._end = self._end or error
        return verdict or Verdict.unjudged(self.metrics, "not_asked")

    async def _ask(
        self, client: Any, key: str, messages: list[dict[str, str]], tag: str
    ) -> Verdict:
        """Return the endpoint's verdict, kept already, or "could not judge" with the reason."""
        import openai

        try:
            # A server that honours the header charges once, however often a killed run asks.
            raw = await client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,
                extra_headers={"Idempotency-Key": key},
                extra_body=self.options,
            )
        except openai.APIStatusError as error:
            return Verdict.unjudged(self.metrics, self._refusal(error))
        except openai.APITimeoutError:
            return Verdict.unjudged(self.metrics, "timed_out")
        except openai.APIConnectionError as error:
            if not self._served and _is_unreached(error.__cause__):
                raise OneShotError(
                    f"judge.base_url: {self.base_url} cannot be reached; start the server, or "
                    "check the address and the network."
                ) from error
            return Verdict.unjudged(self.metrics, "cut_connection")
        try:
            body = json.loads(raw.http_response.text)
            choice = body["choices"][0]
            usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
            score = self.rubric.read(choice["message"].get("content") or "", tag)
            filtered = choice.get("finish_reason") == "content_filter"
            used: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Verdict.unjudged(self.metrics, "bad_response")
        if filtered or score is None:
            reason = "content_filter" if filtered else "malformed"
            verdict = Verdict.unjudged(self.metrics, reason)
        else:
            verdict = Verdict({self.metrics[0]: score})
        # What the server does not count has cost the most that it may.
        correction = 0.0
        if all(type(count) is int and 0 <= count < 10**12 for count in used):
            correction = self.cost(*used) - self.most(raw.http_response.request)
        self._served = True
        self.cache.keep(key, verdict, correction)
        return verdict

    def _refusal(self, error: Any) -> str:
        """Return why one answer has no verdict; raise what no other answer would escape.

        Status and code are shown, never the server's sentence, which may quote the prompt.
        """
        status, code = int(error.status_code), str(error.code or "")
        of_the_key = bool({status, code} & _OF_THE_KEY)
        if code in _OF_ONE_ANSWER:
            return _OF_ONE_ANSWER[code]
        if not of_the_key and (status in (408, 409, 429) or status >= 500):
            return "rate_limited" if status == 429 else "server_error"
        self._refused += status in _BAD_REQUEST
        if status in _BAD_REQUEST and (self._served or self._refused < _REFUSED_AT_FIRST):
            return "bad_request"
        shown = f"{status}, {code}" if re.fullmatch(r"[\w.-]{1,60}", code) else str(status)
        advice = f"judge.model ({self.model}), judge.base_url and judge.options"
        if of_the_key:
            advice = f"the key in {self.api_key_env} and the account behind it"
        raise OneShotError(
            f"the endpoint refuses the requests ({shown}); check {advice}."
        ) from error


def _is_unreached(error: BaseException | None) -> bool:
    # By name: clients bring different versions of httpx.
    return type(error).__name__ in ("ConnectError", "ConnectTimeout")
