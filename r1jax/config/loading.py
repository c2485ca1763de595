"""From a config's name to its value: ``configs/NAME.py`` defines ``config()``, which returns one Stage or Pipeline."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from r1jax.config.base import ConfigError, from_json, to_json
from r1jax.config.stages import AnyStage, Pipeline

WANTED = "an SFT, a GRPO, a RewardModel, a RejectionSampling or a Pipeline"
CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
"""The shipped configs. An installed wheel has none."""


def load_config(name_or_path: str) -> tuple[str, AnyStage | Pipeline]:
    """The name and value of a config: a path to a ``.py`` file, or NAME of ``configs/NAME.py``.

    The value has been through JSON once, so that what runs is exactly what config.json will say.

    Raises:
      ConfigError: nothing of that name, no ``config()``, an error inside it (with its file and line), or a value that is
        no Stage or Pipeline or holds a field of another type.
    """
    path = find_config(name_or_path)
    try:
        module = load_module(path)
        if not callable(vars(module).get("config")):
            raise ConfigError(f"{path} defines no function config(); let it return {WANTED}")
        config = module.config()
    except ConfigError as error:
        raise ConfigError(f"{where_in(path, error)}{error}") from error
    except Exception as error:  # the file is a person's program: whatever it raises is shown with its place
        raise ConfigError(f"{where_in(path, error)}{type(error).__name__}: {error}") from error
    if not isinstance(config, AnyStage | Pipeline):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}; let it return {WANTED}")
    return path.stem, from_json(type(config), to_json(config), str(path))


def list_configs() -> list[tuple[str, str]]:
    """(name, first line of the docstring) of every config that a bare name finds, without running any."""
    return [(name, summary(path)) for name, path in sorted(named_configs().items())]


def find_config(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_file() and path.suffix == ".py":
        return path
    found = named_configs()
    if name_or_path in found:
        return found[name_or_path]
    if path.is_dir():
        raise ConfigError(f"{name_or_path} is a directory; name the .py file in it that defines config()")
    if path.is_file():
        raise ConfigError(f"{name_or_path} is no .py file; a config is a Python file that defines config()")
    if not found:
        raise ConfigError(
            f"no config {name_or_path!r}: there is no such file, and no configs/ here or in this installation (a wheel ships "
            "none); give the path of a .py file, or work in a checkout of r1jax"
        )
    near = difflib.get_close_matches(path.stem, found, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"no config {name_or_path!r}; {hint}give the path of a .py file or one of: {', '.join(sorted(found))}")


def named_configs() -> dict[str, Path]:
    """Name -> file. ``configs`` of the working directory goes before the checkout's."""
    files = [file for folder in (CHECKOUT, Path("configs")) for file in sorted(folder.glob("*.py"))]
    return {file.stem: file for file in files if not file.name.startswith("_")}


def load_module(path: Path) -> ModuleType:
    """Runs the file. Its module is entered into sys.modules, where the annotations of its dataclasses are looked up."""
    spec = importlib.util.spec_from_file_location(f"r1jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def where_in(path: Path, error: Exception) -> str:
    """``FILE:LINE: `` of the innermost line of the config file that led to the error; empty if there is none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    return f"{path}:{lines[-1]}: " if lines else ""


def summary(path: Path) -> str:
    try:
        doc = ast.get_docstring(ast.parse(path.read_text()))
    except SyntaxError as error:
        return f"(does not parse: line {error.lineno}: {error.msg})"
    return doc.splitlines()[0] if doc else ""
