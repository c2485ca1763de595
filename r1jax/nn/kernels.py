"""The optional library of accelerator kernels."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from types import ModuleType

import jax

from r1jax.sharding import platform


def tokamax() -> ModuleType | None:
    """The library; None where it is not installed, of which a warning tells once on an accelerator, and where what is traced is
    for a device that is not here: its kernels are chosen by the one that is."""
    return _find(platform()) if platform() == jax.default_backend() else None


@functools.cache
def _find(where: str) -> ModuleType | None:
    if importlib.util.find_spec("tokamax") is None:
        if where != "cpu":
            warnings.warn(
                "tokamax is not installed, so attention and experts run in plain JAX, which is slower; install r1jax[cuda] or "
                "r1jax[tpu] on Python 3.12 or newer",
                stacklevel=2,
            )
        return None
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # it would read its own flags off the command line, and refuse those that are ours
        flags.FLAGS.mark_as_parsed()
    return tokamax
