"""Asking an endpoint about many answers at once, within the caps, each reply stored as it arrives.

The `openai` client retries and waits. It runs in a thread of its own: Ctrl-C interrupts the main
thread, never one that is about to store a reply.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Verdict
from oneshot_lit.evaluation.judges.cache import NANOS, VerdictCache

# What a refusal says of one answer, and when it speaks of the key.
_OF_ONE_ANSWER = {"content_filter": "content_filter", "context_length_exceeded": "too_long"}
_OF_THE_KEY = {401, 402, 403, 407, "insufficient_quota", "invalid_api_key"}
# A bad request may be the fault of its answer; so many before anything was served are not.
_BAD_REQUEST, _REFUSED_AT_FIRST = (400, 413, 422), 5


class SpendingCapError(OneShotError):
    """A cap on requests or cost is reached; what was judged is kept."""

    code = 3


class Asker:
    """One run of an `EndpointJudge` over some answers.

    Args:
        judge: The judge.
        key: Key of the endpoint.
        cache: Where verdicts and spending are kept.
    """

    def __init__(self, judge: Any, key: str, cache: VerdictCache) -> None:
        self.judge, self.key, self.cache = judge, key, cache
        self._verdicts: SimpleQueue[tuple[int, Verdict] | None] = SimpleQueue()
        # Task -> the cost reserved for its request, from sending it until its verdict is stored.
        self._sending: dict[Any, int] = {}
        self._stopped = self._served = False
        self._refused = 0
        self._error: Exception | None = None

    def ask(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield (position, verdict) as they arrive; raise what ended the run once all is stored.

        After an interrupt, replies under way are waited for and stored; a second interrupt ends
        the wait.
        """
        thread = threading.Thread(target=self._work, args=(answers,), daemon=True)
        thread.start()
        try:
            while (item := self._verdicts.get()) is not None:
                yield item
        finally:
            self._stopped = True
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self, answers: Sequence[Answer]) -> None:
        try:
            asyncio.run(self._ask_all(answers))
        except Exception as error:
            self._stop(error)
        finally:
            self._verdicts.put(None)

    def _stop(self, error: Exception) -> None:
        """Send nothing more; the first reason counts."""
        self._error = self._error or error
        self._stopped = True

    async def _ask_all(self, answers: Sequence[Answer]) -> None:
        # Several answers may put the same question, which is asked once.
        positions: dict[str, list[int]] = {}
        for position, answer in enumerate(answers):
            messages, _ = self.judge.rubric.messages(answer)
            positions.setdefault(self.judge.cache_key(messages), []).append(position)
        free = asyncio.Semaphore(self.judge.concurrency)
        async with self._client() as client:
            tasks = [
                asyncio.create_task(self._one(free, client, key, answers[same[0]], same))
                for key, same in positions.items()
            ]
            while unfinished := [task for task in tasks if not task.done()]:
                for task in unfinished:
                    if self._stopped and task not in self._sending:
                        task.cancel()
                await asyncio.wait(unfinished, timeout=0.1)

    def _client(self) -> Any:
        import openai

        metered = self._metered

        class MeteredClient(openai.DefaultAsyncHttpxClient):
            """Counts every request, retries included, before it is sent."""

            async def send(self, request: Any, **options: Any) -> Any:
                return await metered(partial(super().send, request, **options), request)

        return openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.judge.base_url,
            timeout=self.judge.timeout,
            max_retries=self.judge.attempts - 1,
            http_client=MeteredClient(),
        )

    async def _metered(self, send: Any, request: Any) -> Any:
        """Send a request if the caps allow it; what ends the run cancels the task."""
        task, bound = asyncio.current_task(), self.judge.bound_nanos(len(request.content))
        while not self._stopped and not self.cache.reserve(bound):
            if not self._sending:
                self._stop(self._cap_reached())
            # What is under way may cost less than was reserved for it.
            await asyncio.sleep(0.05)
        if self._stopped:
            raise asyncio.CancelledError
        self._sending[task] = bound
        try:
            response = await send()
        except BaseException as error:
            del self._sending[task]
            if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
                self.cache.give_back(1, bound)
            raise
        if response.is_error:
            self.cache.give_back(0, self._sending.pop(task))
        return response

    def _cap_reached(self) -> OneShotError:
        requests, cost = self.cache.spent()
        key, spent = "max_cost", f"{cost / NANOS:.6g} spent"
        if requests >= self.cache.max_requests:
            key, spent = "max_requests", f"{requests} requests"
        return SpendingCapError(
            f"judge.{key}: the cap is reached ({spent}, counted over all runs of "
            f"{self.cache.folder}); every verdict so far is kept there: raise the cap and run the "
            "same command again."
        )

    async def _one(
        self, free: asyncio.Semaphore, client: Any, key: str, answer: Answer, positions: list[int]
    ) -> None:
        """Get one verdict: from the cache, from another process or from the endpoint."""
        metrics = self.judge.metrics
        longest = self.judge.attempts * (self.judge.timeout + 120)
        async with free:
            try:
                verdict = self.cache.get(key, metrics)
                while verdict is None and not self.cache.claim(key, longest):
                    await asyncio.sleep(0.1)
                    verdict = self.cache.get(key, metrics)
                verdict = verdict or await self._ask_once(client, key, answer)
            except Exception as error:
                self._stop(error)
                return
        for position in positions:
            self._verdicts.put((position, verdict))

    async def _ask_once(self, client: Any, key: str, answer: Answer) -> Verdict:
        """Return the endpoint's verdict, stored already, or "could not judge" with the reason."""
        import openai

        messages, tag = self.judge.rubric.messages(answer)
        try:
            # A server that honours the header charges once, however often a killed run asks.
            raw = await client.chat.completions.with_raw_response.create(
                model=self.judge.model,
                messages=messages,
                extra_headers={"Idempotency-Key": key},
                extra_body=self.judge.options,
            )
            reserved = self._sending[asyncio.current_task()]
            verdict, cost = self._read(raw.http_response.text, tag)
            if verdict.reason not in self.judge.passing:
                self._served = True
                self.cache.keep(key, verdict, 0 if cost is None else reserved - cost)
            return verdict
        except openai.APIStatusError as error:
            reason = self._refusal(error)
        except openai.APITimeoutError:
            reason = "timed_out"
        except openai.APIConnectionError as error:
            reason = "cut_connection"
            if not self._served and type(error.__cause__).__name__ == "ConnectError":
                raise OneShotError(
                    f"judge.base_url: {self.judge.where} cannot be reached; start the server, or "
                    "check the address and the network."
                ) from error
        finally:
            self._sending.pop(asyncio.current_task(), None)
            self.cache.release(key)
        return Verdict.unjudged(self.judge.metrics, reason)

    def _read(self, text: str, tag: str) -> tuple[Verdict, int | None]:
        """Return what a reply says, and its cost; None if the server does not count tokens."""
        metrics, cost = self.judge.metrics, None
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            score = self.judge.rubric.read(choice["message"].get("content") or "", tag)
            usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            return Verdict.unjudged(metrics, "bad_response"), None
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if all(type(count) is int and 0 <= count < 10**12 for count in tokens):
            cost = self.judge.cost_nanos(*tokens)
        if choice.get("finish_reason") == "content_filter":
            return Verdict.unjudged(metrics, "content_filter"), cost
        if score is None:
            return Verdict.unjudged(metrics, "malformed"), cost
        return Verdict({metrics[0]: score}), cost

    def _refusal(self, error: Any) -> str:
        """Return why one answer has no verdict; raise what no other answer would escape.

        Status and code are shown, never the server's sentence, which may quote the prompt.
        """
        status, code = int(error.status_code), str(error.code or "")
        if code in _OF_ONE_ANSWER:
            return _OF_ONE_ANSWER[code]
        of_the_key = bool({status, code} & _OF_THE_KEY)
        if not of_the_key and (status in (408, 409, 429) or status >= 500):
            return "rate_limited" if status == 429 else "server_error"
        if status in _BAD_REQUEST and not of_the_key:
            self._refused += 1
            if self._served or self._refused < _REFUSED_AT_FIRST:
                return "bad_request"
        shown = f"{status}, {code}" if re.fullmatch(r"[\w.-]{1,60}", code) else str(status)
        advice = f"judge.model ({self.judge.model}), judge.base_url and judge.options"
        if of_the_key:
            advice = f"the key in {self.judge.shown_variable} and the account behind it"
        raise OneShotError(
            f"{self.judge.where}: refuses the requests ({shown}); check {advice}."
        ) from error
