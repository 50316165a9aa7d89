"""ServerClient: requests to one server over HTTP, with time-outs, bounded answers, and new tries where they help."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import ssl
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from pangu_modules.llm.generation.server.answers import BrokenAnswerError, ModelsAnswer, ServerError, quote, read_answer

if TYPE_CHECKING:
    from pangu_modules.llm.generation.settings import GenerationSettings

FIRST_DELAY = 0.5
"""Seconds before the second try; each further wait is twice as long, up to `LONGEST_DELAY`."""
LONGEST_DELAY = 60.0
"""Seconds waited at most, also where a server's Retry-After asks for more."""
ERROR_BYTES = 1 << 20
"""Longest error and list of models that are read."""
CONTEXT_WORDS = (b"context", b"max_model_len", b"maximum", b"too long")
"""What servers say of a prompt that leaves no room for the answer."""

T = TypeVar("T")


class _TryAgainError(Exception):
    """One try failed in a way that another may not.

    Args:
        reason: what happened, without what differs from one request to the next.
        answer: the server's words, if it said any.
        delay: seconds that the server asks to wait; None if it says nothing.
        absent: whether there was no connection at all.
    """

    def __init__(self, reason: str, answer: str = "", *, delay: float | None = None, absent: bool = False) -> None:
        super().__init__(f"{reason}: {answer}" if answer else reason)
        self.reason = reason
        self.delay = delay
        self.absent = absent


class ServerClient:
    """An HTTP client of one server.

    Args:
        config: address, key, time-outs, tries and the number of requests under way.

    Attributes:
        tried_again: number of further tries by their reason.
        served: names of the models that the server listed.

    Raises:
        ValueError: the server's key is not in the environment, or cannot be one.
    """

    def __init__(self, config: GenerationSettings) -> None:
        self.config = config
        self.base_url = str(config.base_url).rstrip("/")
        self.tried_again: Counter[str] = Counter()
        self.served: list[str] = []
        self._met = False  # whether the server has ever answered
        self._key = _read_key(config.api_key_variable)
        self._jitter = random.Random()  # of its own: training's random numbers stay where they are
        is_here = _is_loopback(httpx.URL(self.base_url).host)
        self._http = httpx.AsyncClient(
            # Without compression, so that the bound on an answer's bytes is one on memory.
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=httpx.Timeout(None, connect=config.connect_timeout),  # `_once` bounds the whole of a request
            limits=httpx.Limits(max_connections=config.batch_size, max_keepalive_connections=config.batch_size),
            trust_env=not is_here,  # no proxy stands before this machine
            # Reading the system's certificates takes 46 ms, and http on this machine needs none: it trusts nobody.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_here and self.base_url.startswith("http:") else True,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()
        if self.tried_again:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.tried_again.most_common(3))
            warnings.warn(f"{self.base_url}: {self.tried_again.total()} further tries ({reasons})", stacklevel=2)

    async def models(self) -> dict[str, str] | None:
        """Return the owner of each model that the server lists, or None where it has no such list.

        Raises:
            ServerError: there is no server, it wants a key, or it does not come to answer.
        """
        try:
            answer = await self.ask("models", None, ERROR_BYTES, lambda body: read_answer(ModelsAnswer, body))
        except ServerError as error:
            if error.everywhere:
                raise
            return None
        self.served = [model.id for model in answer.data]
        return {model.id: model.owned_by or "" for model in answer.data}

    async def ask(self, path: str, question: dict[str, Any] | None, limit: int, read: Callable[[bytes], T]) -> T:
        """Return what `read` makes of an answer, after as many tries as the configuration allows.

        Args:
            path: below ``base_url``.
            question: what is posted; None gets the path.
            limit: bytes that the answer may have.
            read: raises BrokenAnswerError for a body that another try may mend.

        Raises:
            ServerError: no try gave an answer, or none can.
        """
        for number in range(self.config.retries + 1):
            try:
                body = await self._once(path, question, limit)
                return self._read(body, read)
            except ServerError as error:
                raise ServerError(f"{self.base_url}/{path} {error}", everywhere=error.everywhere) from None
            except _TryAgainError as error:
                if number == self.config.retries or (error.absent and not self._met):
                    raise self._given_up(path, error, number) from None
                self.tried_again[error.reason] += 1
                await asyncio.sleep(self._delay(error.delay, number))
        raise AssertionError("the last try returns or raises")

    def _read(self, body: bytes, read: Callable[[bytes], T]) -> T:
        try:
            return read(body)
        except BrokenAnswerError:
            raise _TryAgainError("answered with something that is not JSON", quote(body, self._key)) from None
        except ServerError as error:
            raise ServerError(f"{error}: {quote(body, self._key)}") from None

    def _given_up(self, path: str, error: _TryAgainError, number: int) -> ServerError:
        tries = f" in each of {number + 1} tries (retries={self.config.retries})" if number else ""
        if error.absent:
            return ServerError(
                f"no server at base_url={self.config.base_url!r}{tries} ({error}): start it, or leave base_url empty",
                everywhere=True,
            )
        return ServerError(f"{self.base_url}/{path} {error}{tries}", everywhere=path == "models")

    def _delay(self, asked: float | None, number: int) -> float:
        if asked is not None:
            return min(asked, LONGEST_DELAY)
        return self._jitter.uniform(0.5, 1.0) * min(FIRST_DELAY * 2**number, LONGEST_DELAY)

    async def _once(self, path: str, question: dict[str, Any] | None, limit: int) -> bytes:
        """Return the body of a good answer to one request."""
        config = self.config
        method = "GET" if question is None else "POST"
        try:
            async with (
                asyncio.timeout(config.timeout),
                self._http.stream(method, f"{self.base_url}/{path}", json=question) as response,
            ):
                self._met = True
                is_good = response.status_code == 200
                body = await _read_body(response, limit if is_good else ERROR_BYTES)
        except httpx.ConnectTimeout:
            raise _TryAgainError(
                f"no connection within connect_timeout={config.connect_timeout:g} seconds", absent=True
            ) from None
        except TimeoutError:
            raise _TryAgainError(f"did not answer within timeout={config.timeout:g} seconds") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise _TryAgainError(str(error) or type(error).__name__, absent=True) from None
        except httpx.TransportError as error:
            raise _TryAgainError(f"broke the connection ({type(error).__name__})") from None
        if not is_good:
            self._refuse(response, body)
        return body

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        """Raise the error of an answer that is not 200."""
        status, config = response.status_code, self.config
        answered = f"answered {status} {httpx.codes.get_reason_phrase(status)}".rstrip()
        if status in (408, 425, 429) or (status >= 500 and status != 501):  # 501: it will never have this path
            delay = retry_after(response.headers.get("Retry-After"))
            raise _TryAgainError(answered, quote(body, self._key), delay=delay)
        if status in (401, 403):
            named = config.api_key_variable
            remedy = f"the value of {named} is not the server's key" if named else "api_key_variable names its key"
            raise ServerError(f"{answered}: {remedy}", everywhere=True)
        if 300 <= status < 400:
            raise ServerError(
                f"{answered} and points elsewhere, where requests do not follow: correct base_url={config.base_url!r}",
                everywhere=True,
            )
        is_unknown = bool(self.served) and config.model not in self.served
        raise ServerError(
            f"{answered} for model {config.model!r}: {quote(body, self._key)}{self._remedy(status, body, is_unknown)}",
            everywhere=is_unknown or (status == 404 and response.request.method == "POST"),  # /models may be missing
        )

    def _remedy(self, status: int, body: bytes, is_unknown: bool) -> str:
        if is_unknown:
            return f"; set model to one that it offers: {quote(', '.join(self.served).encode())}"
        if status == 404:
            return f"; does base_url={self.config.base_url!r} miss a part such as /v1?"
        if any(word in body[:ERROR_BYTES].lower() for word in CONTEXT_WORDS):
            return f"; shorten the prompt, or lower max_new_tokens={self.config.max_new_tokens}"
        return ""


async def _read_body(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > limit:
            raise ServerError(f"gave more than the {limit:,} bytes that an answer to this request can have")
    return bytes(body)


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait: a number or a date; None where it says neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # no date, or one that no calendar has
        return None


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    if variable not in os.environ:
        raise ValueError(f"api_key_variable: there is no environment variable {variable!r}")
    key = os.environ[variable]
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"api_key_variable: {variable!r} is empty, or holds spaces or characters that no key has")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
