"""A reward's name becomes the function."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from r1jax.config import from_json

BUILT_IN = {
    "accuracy": "r1jax.rewards.accuracy:accuracy",
    "choice": "r1jax.rewards.choice:choice",
    "code": "r1jax.rewards.code:code",
    "compare": "r1jax.rewards.compare:compare",
    "exact": "r1jax.rewards.exact:exact",
    "format": "r1jax.rewards.format:format",
    "helpful": "r1jax.rewards.model_scores:helpful",
    "judge": "r1jax.rewards.judge:judge",
    "language": "r1jax.rewards.language:language",
    "numeric": "r1jax.rewards.exact:numeric",
    "overlong": "r1jax.rewards.tokens:overlong",
    "reasoning_gym": "r1jax.rewards.reasoning_gym:reasoning_gym",
    "refusal": "r1jax.rewards.refusal:refusal",
    "repetition": "r1jax.rewards.tokens:repetition",
    "risk_control": "r1jax.rewards.risk_control:risk_control",
    "safety": "r1jax.rewards.model_scores:safety",
    "tag_count": "r1jax.rewards.format:tag_count",
}

MODEL = "model"
"""``model{"run":"RUN"}``, of ``r1jax reward``: a reward model that was trained here."""


def load(name: str) -> Callable:
    """The reward that ``name`` stands for: a built-in, ``pkg.mod:f``, or ``path/file.py:f``; then perhaps options, keyword
    arguments as a JSON object: ``overlong{"max_tokens":20480,"buffer":4096}``.

    A reward that needs something of the machine or of its options has an attribute ``ready``: a function of the options that
    raises ValueError where it is missing.

    Raises:
      ValueError: there is no such reward, its module cannot be imported, an option is unknown, missing or of another type, or
        it is not ready; one line.
    """
    bare, options = split_options(name)
    try:
        if bare == MODEL:
            raise ValueError(
                "a trained reward model scores on the devices, not in a worker: name it in GRPO.preference; only r1jax reward "
                "takes it by this name"
            )
        if bare not in BUILT_IN and ":" not in bare:
            raise ValueError(f"not a built-in ({', '.join(BUILT_IN)}), nor 'pkg.mod:f', nor 'path/file.py:f'")
        function = find(BUILT_IN.get(bare, bare))
        options = _checked(function, options)
        if (ready := getattr(function, "ready", None)) is not None:
            ready(**options)
    except ValueError as e:
        raise ValueError(f"reward {name!r}: {_one_line(e)}") from e
    return functools.partial(function, **options) if options else function


def find(name: str) -> Callable:
    """The function that ``pkg.mod:f`` or ``path/file.py:f`` names.

    Raises:
      ValueError: there is none, or its module cannot be imported.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is neither 'pkg.mod:f' nor 'path/file.py:f'")
    try:
        module = load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except FileNotFoundError as e:
        raise ValueError(str(e)) from e
    except Exception as e:
        raise ValueError(f"importing {module_name} failed with {type(e).__name__}: {_one_line(e)}") from e
    function = getattr(module, attribute, None)
    if function is None:
        raise ValueError(f"{module_name} has no {attribute!r}; {_functions_of(module)}")
    if not callable(function):
        raise ValueError(f"{attribute!r} is no function; {_functions_of(module)}")
    return function


def files_of(name: str) -> list[Path]:
    """The user's files that decide what a reward says: the one it is written in, those that its options name, and what these
    name in turn, which a reward's attribute ``files`` tells, a function of the options.

    Raises:
      ValueError: as ``load``.
    """
    bare, options = split_options(name)
    reward = load(name)
    function = reward.func if isinstance(reward, functools.partial) else reward
    source = bare.rpartition(":")[0]
    named = [source] if source.endswith(".py") else []
    named += [value for value in options.values() if isinstance(value, str) and len(value) < 4096 and "\n" not in value]
    found = [Path(value).expanduser() for value in named] + getattr(function, "files", lambda **_: [])(**options)
    return [path for path in found if path.is_file()]


def split_options(name: str) -> tuple[str, dict]:
    """``NAME{"a":1}`` -> (``NAME``, {"a": 1}).

    Raises:
      ValueError: what follows NAME is no JSON object; one line.
    """
    bare, brace, rest = name.partition("{")
    try:
        return bare, json.loads(brace + rest) if brace else {}
    except json.JSONDecodeError as e:
        raise ValueError(f'reward {name!r}: its options are not JSON, {e.msg}; write them as {bare}{{"option":1}}') from e


def _checked(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """The options with their types, lists as tuples where the function wants those.

    Raises:
      ValueError: one is unknown, missing, or of another type than the function's annotation says.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[3:]  # after prompt, completion, row
    except ValueError:  # it is written in C
        return options
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if takes_any else [key for key in options if key not in named]
    if unknown:
        raise ValueError(
            f"it has no option {unknown[0]!r}; " + (f"its options are {', '.join(named)}" if named else "it has none")
        )
    if missing := [key for key, p in named.items() if p.default is p.empty and key not in options]:
        raise ValueError(f"it needs the option {missing[0]!r}; write it as NAME{{{json.dumps(missing[0])}:...}}")
    hints = typing.get_type_hints(function) if options else {}
    return {key: _typed(hints.get(key, Any), value, f"option {key!r}") for key, value in options.items()}


def _typed(hint: Any, value: Any, where: str) -> Any:
    with contextlib.suppress(TypeError):  # a hint that configs do not have: it is the function's to judge
        return from_json(hint, value, where)
    return value


def load_file(path: Path) -> ModuleType:
    """Imports a file, once; its folder is put at the end of ``sys.path``, so that the file can import its neighbours.

    Raises:
      FileNotFoundError: there is none; one line.
      Exception: whatever the file raises.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Two files may share a name; two functions of one file must share a module.
    module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _functions_of(module: ModuleType) -> str:
    names = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_") and v.__module__ == module.__name__]
    return f"it defines {', '.join(names)}" if names else "it defines no functions"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
