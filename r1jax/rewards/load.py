"""A reward's name becomes the function."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

BUILT_IN = {
    "accuracy": "r1jax.rewards.accuracy:accuracy",
    "code": "r1jax.rewards.code:code",
    "format": "r1jax.rewards.format:format",
    "reasoning_gym": "r1jax.rewards.reasoning_gym:reasoning_gym",
}


def load(name: str) -> Callable:
    """The reward that ``name`` stands for: a built-in, ``pkg.mod:f``, or ``path/file.py:f``.

    A reward that needs something of the machine has an attribute ``ready``: a function that raises ValueError where it is missing.

    Raises:
      ValueError: there is no such reward, its module cannot be imported, or it is not ready; one line.
    """
    module_name, colon, attribute = BUILT_IN.get(name, name).rpartition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"reward {name!r}: not a built-in ({', '.join(BUILT_IN)}), nor 'pkg.mod:f', nor 'path/file.py:f'")
    try:
        module = load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except FileNotFoundError as e:
        raise ValueError(f"reward {name!r}: {e}") from e
    except Exception as e:
        raise ValueError(f"reward {name!r}: importing {module_name} failed with {type(e).__name__}: {_one_line(e)}") from e
    function = getattr(module, attribute, None)
    if function is None:
        raise ValueError(f"reward {name!r}: {module_name} has no {attribute!r}; {_functions_of(module)}")
    if not callable(function):
        raise ValueError(f"reward {name!r}: {attribute!r} is no function; {_functions_of(module)}")
    if (ready := getattr(function, "ready", None)) is not None:
        try:
            ready()
        except ValueError as e:
            raise ValueError(f"reward {name!r}: {_one_line(e)}") from e
    return function


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
