"""Text for people: what a model wrote made safe to print, and numbers short enough for a line."""

from __future__ import annotations

import math
import re

# Everything that moves the cursor or colours the terminal, and what cannot be encoded at all.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, encoding: str = "utf-8") -> str:
    """``text`` with control characters, and what ``encoding`` does not know, as backslash escapes; newlines and tabs stay."""
    text = _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def is_unicode(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show box drawing and braille."""
    return (encoding or "").lower().replace("-", "").replace("_", "").startswith("utf")


def shorten(text: str, limit: int, lines: int) -> str:
    """At most ``limit`` characters and ``lines`` lines (and one that says what was left out): the start and the end, since
    answers stand at the end."""
    rows = text.split("\n")
    if len(rows) > lines:
        head, tail = rows[: lines // 2], rows[len(rows) - (lines - lines // 2) :]
        return _join("\n".join(head), "\n".join(tail), limit, left_out=len(text) - len("\n".join(head + tail)))
    if len(text) > limit:
        return _join(text[: limit // 2], text[len(text) - limit // 2 :], limit, left_out=len(text) - limit // 2 * 2)
    return text


def _join(head: str, tail: str, limit: int, left_out: int) -> str:
    cut_head, cut_tail = head[: limit // 2], tail[max(0, len(tail) - limit // 2) :]
    left_out += len(head) - len(cut_head) + len(tail) - len(cut_tail)
    return f"{cut_head}\n[... {left_out:,} characters left out ...]\n{cut_tail}"


def number(value: float) -> str:
    """Three or four significant digits: 0.523, 0.00123, 12.3, 1,234, 3.0e-06, nan."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(value)
    if size < 0.001 or size >= 1e7:
        return f"{value:.1e}"
    if size >= 1000 or (size >= 100 and value == int(value)):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 0.01 else f"{value:.5f}"


def clock(seconds: float) -> str:
    """0:07, 12:30, 3:04:05, 2d 03:04."""
    seconds = int(max(0.0, seconds))
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}:{m:02d}"
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
