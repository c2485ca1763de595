"""Programs, judged by what they compute: 1 if every test of the row passes, else 0 (arXiv 2501.12948, section 2.2.2).

Every test runs in a box of its own (``sandbox``). What is expected never enters the box that the answer runs in, and what comes
out of it is compared outside: a program that prints "passed", exits with status 0 or writes into the harness's pipe has given a
wrong answer. Nothing here keeps a program from knowing the right output by heart, or from guessing it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

from r1jax.rewards import code_inside, sandbox
from r1jax.rewards.code_blocker import blocker
from r1jax.rewards.code_compare import plain, same_text, same_value
from r1jax.rewards.sandbox import Box, Limits, Outcome, Pipe
from r1jax.rewards.score import Score
from r1jax.rewards.slow_import import stopped_clock

MAX_SECONDS = 30.0
"""The most for one test: a run ends within twice this, and a worker may stand still for ``process.START_SECONDS``."""
MAX_MEMORY_MIB = 4096
TOTAL_SECONDS = 120.0
"""All tests of an answer together."""
COMPILING = Limits(seconds=20.0, memory_mib=2048, processes=8, files_mib=128, output=32 << 20)
LANGUAGES = {"python": "python", "python3": "python", "py": "python", "cpp": "cpp", "c++": "cpp"}
INSIDE = Path(code_inside.__file__)

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def code(prompt: Any, completion: str, row: dict, *, time_limit: float = 5.0, memory_limit: float = 1024) -> Score:
    """1 if the last fenced block after ``</think>`` passes every test of the row, else 0; ``why`` names the first it fails.

    ``row["answer"]`` is one of

        {"tests": [{"input": str, "output": str}, ...]}                         a program: stdin and stdout
        {"function": name, "tests": [{"input": [arguments], "output": value}]}  a function, or a method of ``Solution``
        {"check": source, "entry_point": name}          ``source`` asserts about ``name``, or defines ``check(candidate)``

    It may have ``setup``, put before the answer's code, and ``tolerance``, relative or absolute, for numbers; else outputs are
    equal to the letter, but for white space at the ends of lines and empty lines at the end. The row may have ``language``:
    python, or cpp for programs; and ``time_limit`` and ``memory_limit``, which go before these:

    Args:
      time_limit: seconds of processor time for each test.
      memory_limit: MiB of address space for each process.

    Raises:
      ValueError: the row is none of these, or its language has no compiler here.
      SandboxError: a box did not start.
    """
    answer = row.get("answer")
    if not isinstance(answer, dict):
        raise ValueError(f"the row's answer is a {type(answer).__name__}; for code it is an object with 'tests' or 'check'")
    language = _language(row)
    seconds = _limit("time_limit", row.get("time_limit", time_limit), MAX_SECONDS)
    memory = _limit("memory_limit", row.get("memory_limit", memory_limit), MAX_MEMORY_MIB)
    limits = Limits(seconds=seconds, memory_mib=int(memory))
    tests = _tests(answer, language)
    source = last_block(completion)
    if source is None:
        return Score(0.0, why="no fenced block of code after </think>")
    source = "\n".join(filter(None, (answer.get("setup"), source)))
    try:
        program = _compile(source) if language == "cpp" else source.encode(errors="replace")
    except CompileError as e:
        return Score(0.0, why=f"compile error: {e}")
    end = time.monotonic() + TOTAL_SECONDS
    for number, test in enumerate(tests, 1):
        why = _fault_of(test, program, answer, language, limits)
        if not why and time.monotonic() > end and number < len(tests):
            why = f"time limit: it and those before it took longer than {TOTAL_SECONDS:g} s"
        if why:
            return Score(0.0, why=f"test {number} of {len(tests)}: {why}")
    return Score(1.0, why=f"passed {len(tests)} test{'s' * (len(tests) > 1)}")


def _ready(**limits: float) -> None:
    """What ``load`` asks of the machine."""
    if why := blocker():
        raise ValueError(why)


code.ready = _ready


def last_block(completion: str) -> str | None:
    """What is inside the last fence that is closed, of what follows the thought."""
    text = completion.rpartition("</think>")[2].partition("<think>")[0]
    blocks = _FENCE.findall(text)
    return blocks[-1][1] if blocks else None


def _language(row: dict) -> str:
    name = str(row.get("language", "python")).lower()
    if name not in LANGUAGES:
        raise ValueError(f"the row's language is {name!r}; it is one of {', '.join(LANGUAGES)}")
    return LANGUAGES[name]


def _limit(name: str, value: Any, most: float) -> float:
    if not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{name} is {value!r}; it is a number above 0, and at most {most:g} is granted")
    return min(value, most)


def _tests(answer: dict, language: str) -> list:
    """The row's tests; for ``check``, one.

    Raises:
      ValueError: there are none, or they are not as ``code`` wants them.
    """
    if language != "python" and ("check" in answer or "function" in answer):
        raise ValueError(f"tests of a function are for python, the row's language is {language}")
    if "check" in answer:
        if not isinstance(answer["check"], str) or not isinstance(answer.get("entry_point"), str):
            raise ValueError("the row's answer has a 'check' that is no text, or no 'entry_point'")
        return [answer["check"]]
    tests = answer.get("tests")
    if not tests or not isinstance(tests, list):
        raise ValueError("the row's answer has no 'tests' and no 'check'")
    of_function = "function" in answer
    for number, test in enumerate(tests, 1):
        fits = isinstance(test, dict) and {"input", "output"} <= test.keys()
        if not fits or not isinstance(test["input"], list if of_function else str):
            kind = "a list of arguments" if of_function else "a text"
            raise ValueError(f"test {number} of the row must have 'output' and 'input', which is {kind}")
        if not of_function and not isinstance(test["output"], str):
            raise ValueError(f"test {number} of the row: its output must be a text")
    return tests


class CompileError(Exception):
    """The compiler's first complaint."""


@functools.cache
def compiler() -> str | None:
    """The path of a C++ compiler that a box shows."""
    paths = (os.path.realpath(path) for name in ("g++", "clang++") if (path := shutil.which(name)))
    return next((path for path in paths if path.startswith("/usr/")), None)


def _compile(source: str) -> bytes:
    """The executable.

    Raises:
      CompileError: the source is at fault. ValueError: there is no compiler.
    """
    if (path := compiler()) is None:
        raise ValueError("the row's language is cpp, and there is no C++ compiler below /usr; apt install g++")
    command = f"{path} -std=c++17 -O2 -o program answer.cpp && cat program"
    with stopped_clock():
        outcome = sandbox.run(["/bin/sh", "-c", command], {"answer.cpp": source.encode(errors="replace")}, limits=COMPILING)
    if outcome.ended == "exit" and outcome.code == 0 and outcome.stdout:
        return outcome.stdout
    said = outcome.stderr.decode(errors="replace").splitlines()
    raise CompileError(next((line for line in said if "error" in line), "") or _how_it_failed(outcome, COMPILING))


def _fault_of(test: Any, program: bytes, answer: dict, language: str, limits: Limits) -> str:
    """Why the program fails the test, or ''."""
    if "check" in answer:
        return _check(program, test, answer["entry_point"], limits)
    if "function" in answer:
        return _call(program, answer["function"], test, answer.get("tolerance"), limits)
    python = language == "python"
    argv = [sandbox.PYTHON, "-I", "-S", "answer.py"] if python else ["./program"]
    with stopped_clock():
        outcome = sandbox.run(argv, {argv[-1].removeprefix("./"): program}, test["input"].encode(errors="replace"), limits)
    got = outcome.stdout.decode(errors="replace")
    if outcome.ended == "exit" and same_text(got, test["output"], answer.get("tolerance")):
        return ""
    if outcome.ended != "exit" or outcome.code:
        return _how_it_failed(outcome, limits)
    return f"wrong answer: expected {_short(test['output'])}, got {_short(got)}"


def _call(program: bytes, function: str, test: dict, tolerance: float | None, limits: Limits) -> str:
    request = json.dumps({"args": code_inside.encode(test["input"]), "kwargs": code_inside.encode({})}).encode() + b"\n"
    files = {"inside.py": INSIDE.read_bytes(), "answer.py": program}
    with stopped_clock():
        outcome = sandbox.run([sandbox.PYTHON, "-I", "-S", "inside.py", "serve", function], files, request, limits)
    if outcome.ended != "exit" or not outcome.stdout:
        return _how_it_failed(outcome, limits)
    try:
        reply = json.loads(outcome.stdout)
        if "value" in reply:
            got = plain(reply["value"])
            wrong = f"wrong answer: expected {_short(test['output'])}, got {_short(got)}"
            return "" if same_value(got, test["output"], tolerance) else wrong
        error = str(reply["failed"]) if "failed" in reply else "{}: {}".format(*reply["raised"])
        return _kind_of(error[:200], compiling="failed" in reply)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as e:
        return f"wrong answer: its reply is broken ({type(e).__name__})"


def _check(program: bytes, source: str, entry_point: str, limits: Limits) -> str:
    """The answer and the check run in a box each, joined by a socket."""
    inside, python = INSIDE.read_bytes(), [sandbox.PYTHON, "-I", "-S", "inside.py"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_clock())
        of_answer, of_check = map(stack.enter_context, socket.socketpair())
        null = stack.enter_context(open(os.devnull, "r+b"))
        out, err = stack.enter_context(Pipe()), stack.enter_context(Pipe())
        files = {"inside.py": inside, "answer.py": program}
        served = Box([*python, "serve", entry_point], files, limits, of_answer.fileno(), of_answer.fileno(), null.fileno())
        stack.enter_context(served)
        of_answer.close()
        served.wait_started(null.fileno())
        files = {"inside.py": inside, "check.py": source.encode(errors="replace")}
        argv = [*python, "check", entry_point]
        box = stack.enter_context(Box(argv, files, limits, of_check.fileno(), out.write_end, err.write_end))
        of_check.close()
        out.close_write_end()
        err.close_write_end()
        outcome = box.collect(out.read_end, err.read_end)
        if outcome.ended != "exit" or not outcome.stdout:
            return _how_it_failed(outcome, limits)
        result = json.loads(outcome.stdout)
        if result["verdict"] == "broken":
            raise ValueError(f"the row's check is broken: {result['why']}")
        if result["verdict"] == "raised":
            return _kind_of(result["why"], compiling=False)
        if result["verdict"] == "ended":
            return _kind_of(result["why"], compiling=True) if result["why"] else _how_it_failed(served.end(), limits)
        return "" if result["verdict"] == "pass" else f"wrong answer: {result['why']}"


def _how_it_failed(outcome: Outcome, limits: Limits) -> str:
    """For people: the program chose most of what this goes by."""
    said = outcome.stderr.decode(errors="replace").strip()
    last = said.splitlines()[-1][:200] if said else f"exit status {outcome.code}, nothing on stderr"
    if outcome.ended == "output":
        return f"output limit: more than {limits.output >> 20} MiB"
    if outcome.ended == "time" or outcome.code == 128 + signal.SIGXCPU:
        return f"time limit: longer than {limits.seconds:g} s"
    if "bad_alloc" in said:
        return f"memory limit: {last}"
    if outcome.code > 128:
        return f"runtime error: ended by signal {outcome.code - 128}"
    return _kind_of(last, compiling="Traceback" not in said)


def _kind_of(error: str, compiling: bool) -> str:
    """``error`` is an exception's type and text."""
    if error.startswith("MemoryError"):
        return f"memory limit: {error}"
    if compiling and error.startswith(("SyntaxError", "IndentationError", "TabError")):
        return f"compile error: {error}"
    return f"runtime error: {error}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
