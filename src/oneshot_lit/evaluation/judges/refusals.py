"""What an endpoint's refusal means: it passes, it concerns one answer, or it ends the run."""

from __future__ import annotations

import re
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.replies import PassingError, RefusedError, retry_after

# Replies that the next attempt may mend, and those that no attempt will.
_PASSING = (408, 409, 425, 429)
_LASTING = (401, 402, 403, 404, 405, 407, 410)
_LASTING_CODES = (
    "insufficient_quota",
    "invalid_api_key",
    "model_not_found",
    "unsupported_parameter",
    "unsupported_value",
)
# Refusals that say something of one answer, never of the endpoint.
_OF_ONE_ANSWER = {"content_filter": "content_filter", "context_length_exceeded": "too_long"}


def sort_refusal(error: Any, judge: Any) -> Exception:
    """Return what a refused request is to be raised as.

    Args:
        error: The client's error, with status, code and response.
        judge: Names the keys that may be at fault.
    """
    status, code = int(error.status_code), str(error.code or "")
    if code in _OF_ONE_ANSWER:
        return RefusedError(_OF_ONE_ANSWER[code])
    if status in _LASTING or code in _LASTING_CODES:
        mend = f"check judge.model ({judge.model}), judge.base_url and judge.options"
        if status in (401, 402, 403, 407) or code in _LASTING_CODES[:2]:
            mend = f"check the key in {judge.shown_variable} and the account behind it"
        return OneShotError(f"{_where(judge)}: refuses for good ({_shown(error)}); {mend}.")
    if status in _PASSING or status >= 500:
        reason = "rate_limited" if status == 429 else "server_error"
        return PassingError(reason, retry_after(error.response.headers.get("retry-after")))
    return RefusedError("bad_request")


def refuses_everything(error: Any, judge: Any) -> OneShotError:
    """Return the line for an endpoint that has refused many answers and served none."""
    return OneShotError(
        f"{_where(judge)}: refuses every request ({_shown(error)}); check judge.model "
        f"({judge.model}) and judge.options."
    )


def _shown(error: Any) -> str:
    """Return status and code, never the server's sentence, which may quote the prompt."""
    status, code = int(error.status_code), str(error.code or "")
    return f"{status}, {code}" if re.fullmatch(r"[\w.-]{1,60}", code) else str(status)


def _where(judge: Any) -> str:
    return str(judge.base_url or "the endpoint")
