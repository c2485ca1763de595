"""What runs in a box for tests that call a function. Imports nothing of ours: the file is handed into the box.

    inside.py serve NAME    beside answer.py: for each line ``{"args", "kwargs"}`` on stdin calls NAME and writes on stdout
                            ``{"value"}``, ``{"raised": [type, message]}``, or, before it ends, ``{"failed": message}``
    inside.py check NAME    beside check.py: runs it, with NAME a function that asks a ``serve`` in another box, over stdin, and
                            writes one line ``{"verdict", "why"}`` on stdout: pass, fail, raised (the answer did), ended
                            (the answer has), broken (the check is)

The answer shares a process with ``serve`` and can write any reply: as it could return any value. It sees the arguments, never
what is expected of it, and what it sends is data, of the types below.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import sys
import traceback
import types
from typing import Any

MAX_REPLY = 4 << 20
"""Bytes."""


class AnswerEnded(BaseException):
    """No reply. Not an Exception: a check that expects one must not take this for it."""


def encode(value: Any) -> Any:
    """As JSON: scalars and lists as they are, other containers as ``{type: content}``. Subclasses become what they derive from.

    Raises:
      TypeError: it is, or contains, something else. RecursionError: it contains itself.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else {"int": hex(value)}  # str() of large ones is refused
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(v) for v in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a value of type {type(value).__name__} cannot be compared outside the sandbox")


def decode(data: Any) -> Any:
    """The value that ``encode`` was given.

    Raises:
      ValueError, TypeError: ``encode`` does not write such a thing.
    """
    if isinstance(data, list):
        return [decode(v) for v in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "int":
        return int(content, 16)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    if kind in ("tuple", "set", "frozenset"):
        return getattr(builtins, kind)(decode(v) for v in content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    raise ValueError(f"unknown type {kind!r}")


def serve(name: str) -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # so that neither prints nor reads meet the requests
    os.dup2(null, 1)

    def reply(message: dict) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    try:
        function = _find(_run_file("answer.py", {}), name)
    except BaseException as e:  # SystemExit too
        reply({"failed": _describe(e)})
        return
    for line in requests:
        call = json.loads(line)
        try:
            args, kwargs = decode(call["args"]), decode(call["kwargs"])
            message = {"value": encode(function(*args, **kwargs))}
        except BaseException as e:
            message = {"raised": [type(e).__name__, str(e)[:300]]}
        reply(message)


def check(name: str) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    candidate = _remote(io.FileIO(0, "r"), io.FileIO(0, "w", closefd=False))
    verdict, why = "pass", ""
    try:
        names = _run_file("check.py", {name: candidate})
        if callable(names.get("check")):
            names[name] = candidate  # the file may hold the question's own unfinished one
            names["check"](candidate)
    except AnswerEnded as e:
        verdict, why = "ended", str(e)
    except BaseException as e:
        broken = isinstance(e, SyntaxError) and e.filename == "check.py"
        verdict, why = "broken" if broken else "raised" if hasattr(e, "by_answer") else "fail", _describe(e)
    out.write(json.dumps({"verdict": verdict, "why": why}).encode() + b"\n")
    out.flush()


def _remote(replies: io.FileIO, requests: io.FileIO) -> Any:
    lines = io.BufferedReader(replies)

    def candidate(*args: Any, **kwargs: Any) -> Any:
        request = {"args": encode(list(args)), "kwargs": encode(kwargs)}
        with contextlib.suppress(OSError):  # it ended, perhaps with a last message
            _write_all(requests, json.dumps(request).encode() + b"\n")
        line = lines.readline(MAX_REPLY)
        if not line.endswith(b"\n"):
            raise AnswerEnded("")
        return _result(line)

    return candidate


def _result(reply: bytes) -> Any:
    """The value that ``serve`` sent.

    Raises:
      AnswerEnded: the answer cannot be called, or wrote something else. Exception: the answer raised it.
    """
    try:
        message = json.loads(reply)
        if "value" in message:
            return decode(message["value"])
        if "failed" in message:
            raise AnswerEnded(message["failed"])
        kind, text = message["raised"]
        error = getattr(builtins, kind, None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise AnswerEnded(f"its reply is broken: {_describe(e)}") from e
    known = isinstance(error, type) and issubclass(error, Exception)
    raised = error(text) if known else RuntimeError(f"{kind}: {text}")
    raised.by_answer = True
    raise raised


def _write_all(file: io.FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _run_file(path: str, names: dict[str, Any]) -> dict[str, Any]:
    module = types.ModuleType(path.removesuffix(".py"))
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    module.__dict__.update(names)
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    return module.__dict__


def _find(names: dict[str, Any], name: str) -> Any:
    if name in names:
        return names[name]
    if hasattr(names.get("Solution"), name):
        return getattr(names["Solution"](), name)
    raise NameError(f"the answer defines no {name!r}")


def _describe(error: BaseException) -> str:
    """With the last line of the answer's, or of the check's, that it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in ("answer.py", "check.py")]
    where = f" ({frames[-1].filename}:{frames[-1].lineno} {frames[-1].line})" if frames else ""
    return (type(error).__name__ + f": {error}" * bool(str(error)))[:200] + where[:100]


if __name__ == "__main__":
    {"serve": serve, "check": check}[sys.argv[1]](sys.argv[2])
