"""A report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from importlib import resources
from typing import Any

import jinja2


def render(data: dict[str, Any]) -> str:
    """``page.html`` with its style, its script and ``data`` in it. Its own policy lets no script run but that one, and lets it
    reach nothing but where it came from."""
    style, script = _text("page.css"), _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(title=data["title"], style=style, script=script, digest=digest, data=embedded(data))


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(_strict(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # Lone surrogates, which no encoding knows; their backslash form is JSON's own escape.
    return text.encode("utf-8", "backslashreplace").decode()


def _strict(value: Any) -> Any:
    """Settings may be infinite, which JSON is not: those become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    return [_strict(each) for each in value] if isinstance(value, list | tuple) else value


@functools.cache
def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True).from_string(_text("page.html"))


@functools.cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
