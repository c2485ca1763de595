"""A client of OpenAI-compatible chat endpoints: asks again where that may help, and keeps on disk what was answered.

It uses the standard library's HTTP in threads: a judge thinks for seconds, so connections that stay open would save little.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from r1jax.rewards.slow_import import stopped_clock

MAX_TIMEOUT = 110.0
MAX_WAIT = 60.0
"""Seconds. Both must end within ``process.START_SECONDS``, for which a worker may stand still."""
FIRST_WAIT = 1.0
"""Seconds before the second try, doubled for each further one, unless the server says how long."""
MAX_BACKOFF = 30.0

T = TypeVar("T")


class Unanswered(Exception):
    """The endpoint gave no reply; one line that says why, without the key.

    Args:
      again: asking once more may help.
      late: it took too long.
      wait: seconds that the server wants to be left alone.
    """

    def __init__(self, why: str, *, again: bool, late: bool = False, wait: float | None = None):
        super().__init__(" ".join(why.split())[:300])
        self.again, self.late, self.wait = again, late, wait


class ChatEndpoint:
    """``POST url/chat/completions``; at most ``concurrency`` requests of this process at once.

    Args:
      url: as OpenAI's clients take it, ``https://host/v1``.
      api_key_env: the name of the environment variable that holds the key; '' sends none.
      cache: a folder for the replies, which other processes may share; '' is ``~/.cache/r1jax/judge``.
      timeout: seconds for one request.
      retries: further requests after a first one that failed by 408, 409, 425, 429, 5xx, the network or the time limit.

    Raises:
      ValueError: one of these cannot be used; one line.
    """

    def __init__(
        self, url: str, api_key_env: str = "", cache: str = "", timeout: float = 60.0, retries: int = 4, concurrency: int = 16
    ):
        _check(url, timeout, retries)
        self._url = url.rstrip("/") + "/chat/completions"
        self._key_name, self._key = api_key_env, _key(api_key_env)
        self._cache = _folder(cache)
        self._timeout, self._retries = timeout, retries
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="chat endpoint")

    async def ask(self, body: dict[str, Any], read: Callable[[str], T]) -> T:
        """``read`` of the reply's text. A reply that ``read`` accepts is kept, and the same body is not sent again.

        Raises:
          Unanswered: there is no reply.
          ValueError: whatever ``read`` has against it.
        """
        entry = self._entry(body)
        with contextlib.suppress(OSError, ValueError):  # it is not there, or is damaged
            return read(json.loads(entry.read_bytes()))
        reply = await self._reply(json.dumps(body).encode())
        value = read(reply)
        _write(entry, json.dumps(reply).encode())
        return value

    def _entry(self, body: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
        return self._cache / digest[:2] / f"{digest}.json"

    async def _reply(self, data: bytes) -> str:
        loop = asyncio.get_running_loop()
        for tries in itertools.count(1):
            try:
                with stopped_clock():
                    return await loop.run_in_executor(self._threads, self._post, data)
            except Unanswered as e:
                if not e.again:
                    raise
                if tries > self._retries:
                    raise Unanswered(f"{e} (try {tries}, the last)", again=False, late=e.late) from e
                # Workers that were refused at the same time must not come back at the same time.
                backoff = min(FIRST_WAIT * 2 ** (tries - 1), MAX_BACKOFF) * random.uniform(0.5, 1)
                wait = backoff if e.wait is None else min(e.wait, MAX_WAIT)
            with stopped_clock():
                await asyncio.sleep(wait)

    def _post(self, data: bytes) -> str:
        """The text of the reply's message; '' where it has none."""
        headers = {"Content-Type": "application/json", "User-Agent": "r1jax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        end = time.monotonic() + self._timeout
        try:
            request = urllib.request.Request(self._url, data, headers)
            with self._opener.open(request, timeout=self._timeout) as response:
                raw = self._without_key(_read(response, end))
        except urllib.error.HTTPError as e:
            raise self._refusal(e) from e
        except (OSError, http.client.HTTPException) as e:
            cause = e.reason if isinstance(e, urllib.error.URLError) else e
            if isinstance(cause, TimeoutError):
                raise Unanswered(f"no answer within {self._timeout:g} s", again=True, late=True) from e
            raise Unanswered(self._without_key(f"{type(cause).__name__}: {cause}".encode()), again=True) from e
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as e:
            raise Unanswered(f"what came is no chat completion: {raw[:200]!r}", again=True) from e
        return content if isinstance(content, str) else ""

    def _refusal(self, error: urllib.error.HTTPError) -> Unanswered:
        what = f"HTTP {error.code}"
        if error.code in (401, 403):
            key = f"the key in {self._key_name}" if self._key else "that it needs a key; name its variable by api_key_env"
            return Unanswered(f"{what}: check {key}", again=False)
        if error.code < 400:
            return Unanswered(f"{what}: it leads elsewhere, and the key is not sent there; give that url", again=False)
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            what += f": {self._without_key(error.read(2000))}"
        again = error.code in (408, 409, 425, 429) or error.code >= 500
        return Unanswered(what, again=again, wait=_retry_after(error.headers.get("Retry-After", "")))

    def _without_key(self, text: bytes) -> str:
        """What a server says may hold what it was sent."""
        decoded = text.decode(errors="replace")
        return decoded.replace(self._key, "***") if self._key else decoded


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key to wherever the server points."""

    def redirect_request(self, *_) -> None:
        return None


def _check(url: str, timeout: float, retries: int) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("option 'url' is no http address; give what precedes /chat/completions, as http://localhost:8000/v1")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("option 'url' holds more than an address; put a key into the environment, and name it by api_key_env")
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(f"timeout is {timeout:g}; it must be above 0 and at most {MAX_TIMEOUT:g} s")
    if retries < 0:
        raise ValueError(f"retries is {retries}; it must be at least 0")


def _key(name: str) -> str:
    if not name:
        return ""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("option 'api_key_env' is no name of an environment variable; it must not be the key itself")
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"the environment variable {name} is not set, or is no key; export {name}=...")
    return key


def _folder(cache: str) -> Path:
    path = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "r1jax" / "judge"
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as e:
        raise ValueError(f"the cache {path} cannot be written ({e.strerror}); give another folder as option 'cache'") from e


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > end:  # the socket's own limit is for each part
            raise TimeoutError
    return b"".join(parts)


def _retry_after(text: str) -> float | None:
    """Seconds from a header that holds them, or a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _write(path: Path, data: bytes) -> None:
    """All at once, so that other processes see no part of it."""
    with contextlib.suppress(OSError):  # a full disk costs the next request, not this answer
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
