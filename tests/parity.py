"""Checks against another implementation that are known to fail: each with the changes of that implementation it must notice.

A check is a function that compares and raises AssertionError; its arguments change what it compares with.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

passes = functools.cache(lambda check: check())


def noticed(check: Callable[..., None], change: dict[str, Any]) -> None:
    """The check passes, and with this change it does not."""
    passes(check)
    with pytest.raises(AssertionError):
        check(**change)


def mutations(table: dict[str, dict[str, Any]]):
    """Parametrises ``change`` with a table of names and changes."""
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


def replaced(settings, **fields):
    """A config with other values; ``a__b`` is the field b of its field a."""
    for name, value in fields.items():
        first, _, rest = name.partition("__")
        value = replaced(getattr(settings, first), **{rest: value}) if rest else value
        settings = dataclasses.replace(settings, **{first: value})
    return settings


def close(found: dict, expected: dict, *, atol: float, rtol: float = 1e-5) -> None:
    """Arrays of the same names; any may differ by ``atol`` and by ``rtol`` of its largest value."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        x = np.asarray(x)
        np.testing.assert_allclose(found[name], x, rtol=0, atol=atol + rtol * np.abs(x).max(), err_msg=name)
