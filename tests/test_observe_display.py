"""The display: plain lines without a terminal, live lines on one, and curves."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from r1jax.observe.compiling import watch
from r1jax.observe.curve import curve_png, curve_text, running_mean
from r1jax.observe.display import Display
from r1jax.observe.phases import Phases
from r1jax.observe.text import clock, number, printable, shorten


class Timer:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain(**kwargs):
    out = io.StringIO()
    return out, Display("zero", 100, console=Console(file=out, width=60), **kwargs)


def test_seconds_of_nested_phases_do_not_overlap():
    timer = Timer()
    phases = Phases(timer)
    with phases.open("rollout", 8, "answers") as rollout:
        timer.now += 2
        with phases.open("compile", None, "") as compiling:
            timer.now += 5
        timer.now += 1
        phases.advance(4, 60)
        assert phases.current is rollout and rollout.tokens_per_s == 20.0
    timer.now += 9
    assert (rollout.seconds, compiling.seconds, rollout.done) == (3.0, 5.0, 4)


def test_a_called_phase_lasts_until_the_next():
    timer = Timer()
    phases = Phases(timer)
    first = phases.open("rollout", None, "")
    timer.now += 2
    second = phases.open("reward", None, "")
    timer.now += 1
    assert phases.current is second and first.seconds == 2.0
    phases.leave(second)
    assert phases.current is None


def test_plain_lines_name_each_phase_once_and_each_step():
    timer = Timer()
    out, display = plain(timer=timer)
    with display:
        for step in (1, 2, 3):
            with display.phase("rollout", 64, "answers"):
                timer.now += 10 if step > 1 else 90
                display.advance(64, tokens=1000)
            with display.phase("update"):
                timer.now += 10
            display.step(step, {"reward/total": 0.5, "reward/accuracy": 0.25, "kl": 0.00125, "unknown/metric": 7})
    lines = out.getvalue().splitlines()
    assert sum("rollout: 64 answers" in line for line in lines) == 1
    assert sum(bool(re.search(r"\d update$", line)) for line in lines) == 1
    step = next(line for line in lines if "step   3/100" in line)
    # 1000 tokens in 20 s, and 97 steps of 20 s are left: the first step, which compiles, is not counted.
    assert step.endswith("reward 0.500  accuracy 0.250  kl 0.00125  50.0 tok/s  32:20 left")
    assert "step 3 of 100" in lines[-1]
    assert "\x1b" not in out.getvalue()


def test_failed_scores_and_skipped_updates_are_on_the_line_and_nan_too():
    out, display = plain()
    with display:
        display.step(1, {"reward/total": 1.0, "reward/accuracy/errors/timeout": 3, "update/skipped": 0, "loss": float("nan")})
    assert "accuracy/errors/timeout 3" in out.getvalue() and "skipped" not in out.getvalue() and "loss nan" in out.getvalue()


def test_evaluation_has_its_own_line():
    out, display = plain()
    with display:
        display.step(0, {"eval/accuracy": 0.125})
        display.step(0, {"eval/left_out": 0.0, "eval/greedy": 0.5})
        display.step(0, {"eval/left_out": 3.0, "eval/greedy": 0.5})
    assert "eval at step 0  accuracy 0.125" in out.getvalue() and "step   0" not in out.getvalue()
    assert "eval at step 0  greedy 0.500\n" in out.getvalue()
    assert "eval at step 0  greedy 0.500  3 too long and left out\n" in out.getvalue()


def test_a_long_phase_is_named_with_its_seconds():
    timer = Timer()
    out, display = plain(timer=timer)

    def printed_after(seconds):
        before = len(out.getvalue())
        timer.now += seconds
        display._name_long_phase()
        return out.getvalue()[before:].strip()[9:]

    with display:
        with display.phase("compile"):
            assert [printed_after(29), printed_after(1), printed_after(29)] == ["", "compile  0:30  (no news for 30 s)", ""]
            assert printed_after(2) == "compile  1:01  (no news for 61 s)"
        with display.phase("rollout", 4, "answers"):
            timer.now += 20
            display.advance(1, tokens=100)
            assert printed_after(15) == "rollout  1/4 answers  2.857 tok/s  0:35"


def test_the_heartbeat_beats_by_itself_and_ends_with_the_display():
    out, display = plain(heartbeat=0.05)
    with display:
        display.phase("compile")  # still open when the display ends
        deadline = time.monotonic() + 20
        while "no news" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "compile  0:00  (no news for 0 s)" in out.getvalue()
    ended = out.getvalue()
    time.sleep(0.3)
    assert out.getvalue() == ended


def test_an_exception_says_in_which_phase():
    out, display = plain()
    with pytest.raises(KeyboardInterrupt), display, display.phase("rollout"), display.phase("compile"):
        raise KeyboardInterrupt
    assert out.getvalue().splitlines()[-1].endswith("stopped after 0:00, at step 0 of 100, in phase compile")


def test_samples_keep_both_ends_and_print_literally():
    out, display = plain()
    completion = "<think>" + "x" * 5000 + "</think> [bold]5[/bold] \x1b[2J\ud800 :smile:"
    with display:
        display.sample("2+3?", completion, {"accuracy": (1.0, "equal")}, 7)
    text = out.getvalue()
    assert "sample at step 7" in text and "accuracy 1.000 (equal)" in text and "2+3?" in text
    assert "[bold]5[/bold] \\x1b[2J\\ud800 :smile:" in text and "\x1b" not in text
    assert "<think>xxx" in text and len(text) < 2500 and "characters left out" in text


def test_a_stream_that_is_not_unicode_is_no_error():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Display("zéro", 3, console=Console(file=stream)) as display:
        display.sample("π?", "≈ 3", {"accuracy": (0.0, "não")}, 1)
    stream.flush()
    assert "z\\xe9ro" in raw.getvalue().decode("ascii") and "\\u2248 3" in raw.getvalue().decode("ascii")


LIVE = """
import sys, time
from r1jax.observe.display import Display
with Display("quickstart/grpo", 10) as display:
    with display.phase("rollout", 64, "answers"):
        for _ in range(6):
            time.sleep(0.15)
            display.advance(8, tokens=100)
    display.step(1, {"reward/total": 0.5, "reward/accuracy": 0.25, "reward/format": 0.75, "kl": 0.1, "entropy": 0.7})
    display.sample("2+3?", "it is 5", {"accuracy": (1.0, "")}, 1)
    if sys.argv[1] == "interrupt":
        raise KeyboardInterrupt
    if sys.argv[1] == "kill":
        import os; os.kill(os.getpid(), 9)
"""


def on_terminal(argument, columns=60, **env):
    """What LIVE writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")} | {"TERM": "xterm"} | env
    child = subprocess.Popen([sys.executable, "-c", LIVE, argument], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    data = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            data += os.read(ours, 65536)
        except OSError:  # Linux's end of file of a terminal
            break
    child.wait(30)
    os.close(ours)
    return data.decode()


def visible(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("end", ["finish", "interrupt", "kill"])
def test_live_lines_fit_and_the_cursor_is_left_visible(end):
    text = on_terminal(end)
    rows = [row for part in visible(text).split("\n") for row in part.split("\r")]
    assert any(re.search(r"rollout  \d+/64 answers  \S+ tok/s", row) for row in rows)
    assert any(re.search(r"step  1/10  reward 0.500  accuracy 0.250  \S+ tok/s", row) for row in rows)  # what fits
    assert max(len(row) for row in rows if "File" not in row) <= 60
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    if end != "kill":
        assert f"quickstart/grpo: {'done' if end == 'finish' else 'stopped'} after" in visible(text)


def test_a_narrow_terminal_keeps_the_stage_and_the_reward():
    rows = [row for part in visible(on_terminal("finish", columns=30)).split("\n") for row in part.split("\r")]
    assert any(re.fullmatch(r"…\w+/grpo 1/10 0:0\d, 0:\d\d left", row.strip()) for row in rows), rows
    assert any(re.match(r"step  1/10  reward 0.500\s*$", row) for row in rows)  # and not tokens per second in its place
    assert any(re.match(r". rollout  \d+/64 answers  0:0\d", row) for row in rows)
    assert max(map(len, rows)) <= 30


def test_a_file_gets_plain_lines_even_where_colour_is_forced():
    out = io.StringIO()
    with Display("zero", 3, console=Console(file=out, force_terminal=True, width=60)) as display, display.phase("rollout"):
        pass
    assert "\x1b[?25" not in out.getvalue() and "rollout" in out.getvalue()


def test_no_color_and_dumb_terminals_are_honoured():
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    assert colour.search(on_terminal("finish"))
    assert not colour.search(on_terminal("finish", NO_COLOR="1"))
    assert "\x1b" not in on_terminal("finish", TERM="dumb")


def test_a_rising_curve_rises_in_braille_and_ascii():
    points = [(step, step / 100) for step in range(101)]
    text = curve_text(points, 40, 12, "accuracy", encoding="utf-8")
    lines = text.split("\n")
    assert len(lines) <= 12 and max(map(len, lines)) <= 40
    assert "accuracy" in lines[0] and lines[1].startswith("1.00 ┤") and lines[-3].startswith("0.00 ┤")
    assert lines[1][-1] > "\u2800" and lines[-3][6] > "\u2800" and lines[1][6] == " "
    assert lines[-1].split() == ["0", "step", "100"]

    ascii_lines = curve_text(points, 40, 12, "accuracy", encoding="latin-1").split("\n")
    assert "\n".join(ascii_lines).isascii()
    stars = {(line.index("*"), row) for row, line in enumerate(ascii_lines[1:-2]) if "*" in line}
    assert sorted(stars) == sorted(stars, key=lambda at: -at[1]) and len(stars) == 9


def test_a_curve_draws_means_of_crowded_points_and_leaves_out_nan():
    crowded = [(step, (step % 2) * 1.0) for step in range(1000)] + [(1000, float("nan"))]
    lines = curve_text(crowded, 30, 9, encoding="ascii").split("\n")
    assert "*" not in lines[0] and "*" in lines[3] and "*" not in lines[6]
    assert curve_text([(0, float("nan"))], title="kl") == "kl: no values yet"


def test_shares_that_are_all_zero_stand_on_the_axis_of_shares():
    lines = curve_text([(step, 0.0) for step in range(9)], 30, 9, encoding="ascii").split("\n")
    assert lines[0].startswith("1.00") and lines[-3].startswith("0.00") and "*" in lines[-3]


def test_running_mean_by_hand():
    assert running_mean([0, 3, 6, 3], 3) == [1.5, 3, 4, 4.5]
    assert running_mean([1, 2], 1) == [1, 2]


def test_a_png_shows_every_series(tmp_path):
    from matplotlib.image import imread

    file = tmp_path / "curve.png"
    points = {"a": [(0, 0.6), (10, 0.7)], "b": [(step, 0.9) for step in range(100)]}
    curve_png(file, points, title="Accuracy", ylabel="accuracy")
    image = imread(file)[..., :3]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        close = abs(image - [c / 255 for c in colour]).max(-1) < 0.02
        assert close.sum() > 500
    blue = (abs(image - [0, 0x72 / 255, 0xB2 / 255]).max(-1) < 0.02)[:, : image.shape[1] // 2].nonzero()[0]
    assert sorted(blue)[len(blue) // 2] < image.shape[0] * 0.5  # 0.6 to 0.7 lie in the upper half: the axis goes from 0 to 1


def test_texts():
    assert printable("a\tb\r\nc\x07\u202e") == "a\tb\nc\\x07\\u202e"
    assert printable("é", "ascii") == "\\xe9"
    assert [number(v) for v in (0, 0.5, 12.34, 1234.5, 3e-6, 512.0)] == ["0", "0.500", "12.3", "1,234", "3.0e-06", "512"]
    assert [clock(v) for v in (7, 750, 11045, 97440)] == ["0:07", "12:30", "3:04:05", "1d 03:04"]
    assert shorten("abc", 10, 5) == "abc"
    assert shorten("abcdefghijkl", 4, 5) == "ab\n[... 8 characters left out ...]\nkl"
    assert shorten("1\n2\n3\n4\n5\n6", 100, 2) == "1\n[... 8 characters left out ...]\n6"


# -- Compilation


def test_compiling_is_a_phase_of_its_own():
    phases, heard = Phases(), []

    def begin():
        return phases.open("compile", None, "")

    def body(x):
        jax.debug.callback(lambda: heard.append(phases.current.name))
        return x + 1

    with watch(begin, lambda phase: heard.append((phase.name, phase.seconds > 0))), phases.open("rollout", None, ""):
        f = jax.jit(body)
        for _ in range(2):
            jax.block_until_ready(f(np.float32(1)))
            jax.effects_barrier()
        assert phases.current.name == "rollout"
    assert heard == [("compile", True), "rollout", "rollout"]
    jax.jit(lambda x: x + 2)(np.float32(1))
    assert len(heard) == 3


def test_a_program_that_does_not_compile_is_told_with_its_phase():
    phases = Phases()
    with pytest.raises(RuntimeError), phases.open("rollout", None, ""):
        phases.open("compile", None, "").__enter__()
        raise RuntimeError
    assert phases.stopped_in == "rollout, compile" and phases.current is None


def test_each_change_of_the_innermost_phase_is_told():
    told = []
    phases = Phases(told=told.append)
    with phases.open("rollout", None, ""):
        with phases.open("compile", None, ""):
            pass
        phases.advance(1, 0)
    phases.open("save", None, "")
    assert told == ["rollout", "compile", "rollout", "save"]
