"""Asking an endpoint: concurrent, retried, within the caps, every reply kept as it arrives.

What a kill can cost: a reply that was on its way when the process died is paid for and unknown to
us, so at most `concurrency` answers are asked about again. Each request bears an `Idempotency-Key`
that the next run repeats; a server that honours it makes even those free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Verdict
from oneshot_lit.evaluation.judges.cache import Paid, VerdictCache
from oneshot_lit.evaluation.judges.interrupts import run_interruptibly
from oneshot_lit.evaluation.judges.refusals import refuses_everything, sort_refusal
from oneshot_lit.evaluation.judges.replies import PassingError, RefusedError, Reply, read_reply

# So many requests refused one after the other, and none served, are no fault of the answers.
_REFUSED_AT_FIRST = 5
# A connection that was never made cannot have cost anything.
_NEVER_SENT = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "LocalProtocolError",
    "UnsupportedProtocol",
)
# Seconds between two looks at what another process is asking about, and those that a claim outlives
# the longest pause and the longest reply.
_LOOK, _MARGIN = 0.1, 60.0


@dataclass
class Asker:
    """One run of an `EndpointJudge` over some answers."""

    judge: Any
    key: str = field(repr=False)
    cache: VerdictCache

    def __post_init__(self) -> None:
        """Begin with nothing under way."""
        self._open = 0
        self._freed = asyncio.Event()
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._stop: OneShotError | None = None
        # What waits for anything else than a reply ends its wait when the run does.
        self._stopped = asyncio.Event()
        self._served = False
        self._refused = 0

    def ask(self, answers: Sequence[Answer]) -> Iterator[tuple[int, Verdict]]:
        """Yield (position, verdict) as they arrive; raise what ends the run once all is kept."""
        loop = asyncio.new_event_loop()
        waiting = iter(enumerate(answers))
        pending: set[asyncio.Task[tuple[int, Verdict]]] = set()
        client = self._client()
        try:
            while True:
                while self._stop is None and len(pending) < self.judge.concurrency:
                    if (following := next(waiting, None)) is None:
                        break
                    pending.add(loop.create_task(self._one(client, *following)))
                if not pending:
                    break
                first = asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done, pending = run_interruptibly(loop, first)
                for task in done:
                    error = task.exception()
                    if error is None:
                        yield task.result()
                    elif not isinstance(error, OneShotError):
                        raise error
                    else:
                        # What is under way is paid for: it is waited for and kept.
                        self._end(error)
            if self._stop is not None:
                raise self._stop
        finally:
            try:
                self._wait_for_sent(loop, pending)
            finally:
                for task in pending:
                    task.cancel()
                if pending:
                    loop.run_until_complete(asyncio.wait(pending))
                loop.run_until_complete(client.close())
                loop.close()

    def _end(self, error: OneShotError) -> None:
        """Let nothing more be sent; the first reason counts."""
        self._stop = self._stop or error
        self._stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def _wait_for_sent(
        self, loop: asyncio.AbstractEventLoop, pending: set[asyncio.Task[tuple[int, Verdict]]]
    ) -> None:
        """After an interrupt, wait for replies that are paid for; a second one cuts it short."""
        self._end(OneShotError("interrupted"))
        sent = {task for task in pending if task in self._sending and not task.done()}
        for task in pending - sent:
            task.cancel()
        if sent:
            loop.run_until_complete(asyncio.wait(sent, timeout=self.judge.timeout))

    def _client(self) -> Any:
        import openai

        try:
            return openai.AsyncOpenAI(
                api_key=self.key,
                base_url=self.judge.base_url,
                timeout=self.judge.timeout,
                max_retries=0,
            )
        except Exception as error:
            # Whatever the checks of the address have let pass.
            raise OneShotError(
                f"judge.base_url: cannot be used ({type(error).__name__}); give an address such as "
                "http://localhost:8000/v1."
            ) from error

    async def _one(self, client: Any, position: int, answer: Answer) -> tuple[int, Verdict]:
        messages, tag = self.judge.rubric.messages(answer)
        key = self.judge.cache_key(messages)
        # Of two alike, the second waits and finds the verdict of the first.
        async with self._locks.setdefault(key, asyncio.Lock()):
            # Of two processes, too.
            while not self.cache.claim(key, self._longest_claim()):
                known = self.cache.get(key, self.judge.metrics)
                if known is not None:
                    self.judge.count(known, cached=True)
                    return position, known.verdict
                await self._sleep(_LOOK)
                if self._stop is not None:
                    raise self._stop
            try:
                paid = await self._retried(client, messages, tag, key)
            except PassingError as error:
                if not error.sent and not self._served:
                    raise self._unreachable(error) from error
                return position, Verdict.unjudged(self.judge.metrics, error.reason)
            except RefusedError as error:
                return position, Verdict.unjudged(self.judge.metrics, error.reason)
            finally:
                self.cache.release(key)
            self.judge.count(paid)
            return position, paid.verdict

    def _longest_claim(self) -> float:
        """Return the seconds within which a living process makes its next attempt."""
        return self.judge.timeout + self.judge.longest_wait + _MARGIN

    def _unreachable(self, error: PassingError) -> OneShotError:
        where = self.judge.base_url or "the endpoint's own address"
        return OneShotError(
            f"judge.base_url: {where} cannot be reached ({self.judge.attempts} attempts, "
            f"{error.reason}); start the server, or check the address and the network."
        )

    async def _retried(
        self, client: Any, messages: list[dict[str, str]], tag: str, key: str
    ) -> Paid:
        import tenacity

        longest = self.judge.longest_wait
        jittered = tenacity.wait_random_exponential(multiplier=0.5, max=min(30.0, longest))

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.pause if isinstance(error, PassingError) else 0.0
            return asked + jittered(state)

        def again(error: BaseException) -> bool:
            return isinstance(error, PassingError) and error.pause <= longest

        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            stop=tenacity.stop_after_attempt(self.judge.attempts),
            wait=pause,
            retry=tenacity.retry_if_exception(again),
            reraise=True,
        )
        paid: Paid = await retrying(self._attempt, client, messages, tag, key)
        return paid

    async def _attempt(
        self, client: Any, messages: list[dict[str, str]], tag: str, key: str
    ) -> Paid:
        if self._stop is not None:
            raise self._stop
        bound = self.judge.bound_nanos(messages)
        await self._reserve(bound)
        if self._stop is not None:
            self.cache.settle(bound, 0, sent=False)
            self._open -= 1
            self._freed.set()
            raise self._stop
        self.cache.claim(key, self._longest_claim())
        self.judge.count(requests=1)
        self._sending.add(asyncio.current_task())
        try:
            reply = await self._send(client, messages, key, bound)
            paid = self._paid(reply, tag, bound)
            self.cache.keep(key, paid, bound)
            self._served = True
            return paid
        except OneShotError as error:
            # Before the place is free, for which others wait.
            self._end(error)
            raise
        finally:
            self._sending.discard(asyncio.current_task())
            self._open -= 1
            self._freed.set()

    async def _reserve(self, bound: int) -> None:
        while not self.cache.reserve(bound):
            if not self._open:
                raise self._cap_reached()
            # What is under way may cost less than was set aside for it.
            self._freed.clear()
            await self._freed.wait()
        self._open += 1

    def _cap_reached(self) -> OneShotError:
        from oneshot_lit.evaluation.judges.replies import SpendingCapError

        requests, cost = self.cache.spent()
        cap = self.cache.max_requests
        key = "max_requests" if cap is not None and requests >= cap else "max_cost"
        spent = f"{requests} requests" if key == "max_requests" else f"{cost / 1e9:.6g} spent"
        return SpendingCapError(
            f"judge.{key}: the cap is reached ({spent}, counted over all runs of "
            f"{self.cache.folder}); every verdict so far is kept there: raise the cap and run the "
            "same command again."
        )

    def _paid(self, reply: Reply, tag: str, bound: int) -> Paid:
        """Read a reply; without a count of its tokens it is taken to cost the most it may."""
        metrics = self.judge.metrics
        score = None if reply.text is None else self.judge.rubric.read(reply.text, tag)
        if score is None:
            verdict = Verdict.unjudged(metrics, reply.reason or "malformed")
        else:
            verdict = Verdict({metrics[0]: score})
        tokens_in, tokens_out = reply.prompt_tokens, reply.completion_tokens
        if tokens_in is None or tokens_out is None:
            return Paid(verdict, None, None, bound)
        return Paid(verdict, tokens_in, tokens_out, self.judge.cost_nanos(tokens_in, tokens_out))

    async def _send(
        self, client: Any, messages: list[dict[str, str]], key: str, bound: int
    ) -> Reply:
        import openai

        # The same in every run, so that a reply lost with its process is not paid for again; a new
        # one after a known failure, which a server might repeat as well.
        once = f"{key}-{self.cache.failures(key)}"
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.judge.model,
                messages=messages,
                extra_headers={"Idempotency-Key": once},
                extra_body=self.judge.options,
            )
            reply = read_reply(raw.http_response.text)
        except openai.APITimeoutError as error:
            sent = self._was_sent(error, bound)
            raise PassingError("timed_out", sent=sent) from error
        except openai.APIConnectionError as error:
            sent = self._was_sent(error, bound)
            raise PassingError("cut_connection", sent=sent) from error
        except openai.APIStatusError as error:
            # A refused request counts, but costs nothing.
            self.cache.settle(bound, 0)
            self.cache.add_failure(key)
            raise self._refusal(error) from error
        except PassingError:
            self.cache.add_failure(key)
            raise
        return reply

    def _was_sent(self, error: BaseException, bound: int) -> bool:
        """Whether a request may have cost something; one that was never sent is not counted."""
        if type(error.__cause__).__name__ not in _NEVER_SENT:
            return True
        self.cache.settle(bound, 0, sent=False)
        self.judge.count(requests=-1)
        return False

    def _refusal(self, error: Any) -> Exception:
        """Sort a refusal; many at first, and nothing served, are the endpoint's."""
        sorted_ = sort_refusal(error, self.judge)
        if isinstance(sorted_, RefusedError) and sorted_.reason == "bad_request":
            self._refused += 1
            if not self._served and self._refused >= _REFUSED_AT_FIRST:
                return refuses_everything(error, self.judge)
        return sorted_
