"""The reward of programs: what counts as right, what is said of wrong ones, and answers that would rather forge than solve."""

import json
import platform

import pytest

from r1jax.config import Workers
from r1jax.rewards import Item, Pool, Score, sandbox
from r1jax.rewards.code import code, compiler, last_block
from r1jax.rewards.code_blocker import blocker
from r1jax.rewards.code_compare import plain, same_text, same_value
from r1jax.rewards.code_inside import decode, encode

SUM = {"tests": [{"input": "1 2\n", "output": "3"}, {"input": "5 6\n", "output": "11\n"}]}
ADD = {"function": "add", "tests": [{"input": [1, 2], "output": 3}, {"input": [[1], [2]], "output": [1, 2]}]}
CHECK = {
    "check": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate((1,), (2,)) == (1, 2)\n",
    "entry_point": "add",
}
READ = "a, b = map(int, input().split())\n"
KNOWN = "def add(a, b):\n    "


@pytest.fixture(scope="module", autouse=True)
def _sandbox():
    if sandbox.mode() == "unsafe" or (why := blocker()):
        pytest.skip("the sandbox is switched off" if sandbox.mode() == "unsafe" else why)


def score(source, answer, **row) -> Score:
    return code("", f"<think>\n```python\nprint(3)\n```\n</think>\nSo:\n```python\n{source}\n```\n", {"answer": answer, **row})


JUDGED = [  # source, tests, value, why
    (READ + "print(a + b)", SUM, 1, "passed 2 tests"),
    (READ + "import sys\nsys.stdout.write(f'{a + b}  \\n\\n')", SUM, 1, "passed"),
    (READ + "print(a + b)\nraise SystemExit(7)", SUM, 1, "passed"),
    (READ + "print(3)", SUM, 0, "test 2 of 2: wrong answer: expected '11\\n', got '3\\n'"),
    (READ + "print(a + b", SUM, 0, "test 1 of 2: compile error: SyntaxError: '(' was never closed"),
    (READ + "print(a / 0)", SUM, 0, "test 1 of 2: runtime error: ZeroDivisionError"),
    (READ + "eval('1 +')", SUM, 0, "test 1 of 2: runtime error: SyntaxError"),
    (READ + "x = bytearray(2 << 30)", SUM, 0, "test 1 of 2: memory limit"),
    ("while True: print('x' * 1000)", SUM, 0, "test 1 of 2: output limit"),
    ("", SUM, 0, "test 1 of 2: wrong answer: expected '3', got ''"),
    (KNOWN + "return a + b", ADD, 1, "passed 2 tests"),
    ("class Solution:\n    def add(self, a, b):\n        print('noise')\n        return a + b", ADD, 1, "passed"),
    (KNOWN + "return 3", ADD, 0, "test 2 of 2: wrong answer: expected [1, 2], got 3"),
    (KNOWN + "return {3}", ADD, 0, "test 1 of 2: wrong answer: its reply is broken"),
    (KNOWN + "return object()", ADD, 0, "test 1 of 2: runtime error: TypeError: a value of type object"),
    (KNOWN + "return a / 0", ADD, 0, "test 1 of 2: runtime error: ZeroDivisionError"),
    (KNOWN + "return bytearray(2 << 30)", ADD, 0, "test 1 of 2: memory limit"),
    ("def add(a, b: return", ADD, 0, "test 1 of 2: compile error: SyntaxError"),
    ("def plus(a, b): return a + b", ADD, 0, "test 1 of 2: runtime error: NameError: the answer defines no 'add'"),
    (KNOWN + "return a + b", CHECK, 1, "passed 1 test"),
    (KNOWN + "return 3", CHECK, 0, "test 1 of 1: wrong answer: AssertionError (check.py:3 assert candidate((1,)"),
    (KNOWN + "return a / 0", CHECK, 0, "test 1 of 1: runtime error: ZeroDivisionError"),
    ("def add(a, b: return", CHECK, 0, "test 1 of 1: compile error: SyntaxError"),
    (
        KNOWN + "return a + b",
        {"check": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'", "entry_point": "add"},
        1,
        "passed",
    ),
    (
        KNOWN + "return 3",
        {"check": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'", "entry_point": "add"},
        0,
        "wrong answer",
    ),
]
FORGED = [  # none of them may pass
    ("import os\nos._exit(0)", SUM),
    ("print('passed every test')", SUM),
    ("import sys\nsys.stdout = None", SUM),
    ("import os\nos._exit(0)", ADD),
    ("raise SystemExit(0)", ADD),
    (KNOWN + "import os; os._exit(0)", ADD),
    ("import os\nos.write(1, b'{\"value\": 3}\\n')\nos._exit(0)", ADD),  # what is expected in test 1 only
    ('import os\n[os.write(fd, b\'{"verdict": "pass", "why": ""}\\n\') for fd in range(3, 6)]\nos._exit(0)', ADD),
    ("class Equal(int):\n    def __eq__(self, other): return True\n" + KNOWN + "return Equal(4)", ADD),
    ("import os\nos._exit(0)", CHECK),
    (KNOWN + "import os; os._exit(0)", CHECK),
    (KNOWN + "raise SystemExit(0)", CHECK),
    (
        'import os\nfor fd in range(9):\n    try: os.write(fd, b\'{"verdict": "pass", "why": ""}\\n\')\n    except OSError: 0',
        CHECK,
    ),
    ("class Equal(int):\n    def __eq__(self, other): return True\n" + KNOWN + "return Equal(4)", CHECK),
    ("import builtins\nbuiltins.AssertionError = ValueError\n" + KNOWN + "return 4", CHECK),
    (
        "import sys\nsys.modules['__main__']._find = None\nsys.modules['__main__'].encode = lambda v: 3\n" + KNOWN + "return 4",
        CHECK,
    ),
    (
        "import sys, gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'check' in o: o['check'] = None\n" + KNOWN,
        CHECK,
    ),
    ("import os\nopen('check.py', 'w').write('pass')\n" + KNOWN + "return 4", CHECK),
    (
        "import os\nfor fd in range(3, 10):\n    try: os.write(fd, b'x' * 99)\n    except OSError: pass\n" + KNOWN + "return 4",
        CHECK,
    ),
    (KNOWN + "import sys, os; os.write(5, b'[' * 100000 + b'\\n'); return 4", CHECK),
    (KNOWN + "x = []; x.append(x); return x", CHECK),
    (
        "def add(*a):\n    raise AssertionError",
        {"check": "try: add(1)\nexcept ValueError: pass\nelse: assert 0", "entry_point": "add"},
    ),
    (
        "import os\ndef add(*a): os._exit(1)",
        {"check": "try: add(1)\nexcept Exception: pass\nelse: assert 0", "entry_point": "add"},
    ),
]


@pytest.mark.parametrize("source, answer, value, why", JUDGED)
def test_judged(source, answer, value, why):
    got = score(source, answer)
    assert (got.value, got.status) == (value, "ok") and why in got.why, got


@pytest.mark.parametrize("source, answer", FORGED)
def test_a_forger_gets_nothing(source, answer):
    got = score(source, answer, time_limit=2)
    assert (got.value, got.status) == (0.0, "ok") and "test" in got.why, got


LOOK = """
import gc, os
seen = str([o for o in gc.get_objects() if type(o) in (dict, list, tuple, str)])
for folder, _, files in os.walk("/tmp"):
    seen += "".join(open(os.path.join(folder, f)).read() for f in files)
for pid in ["self", *filter(str.isdigit, os.listdir("/proc"))]:
    seen += open(f"/proc/{pid}/cmdline").read()
seen += str(os.environ)
at = seen.find("".join(["sesa", "me-"]))
found = seen[at : at + 12] if at >= 0 else "hidden"
"""


@pytest.mark.parametrize(
    "use, answer",
    [
        ("print(found)", {"tests": [{"input": "", "output": "sesame-70137"}]}),
        ("def f(): return found", {"function": "f", "tests": [{"input": [], "output": "sesame-70137"}]}),
        ("def f(): return found", {"check": "assert f() == 'sesame-70137', f()", "entry_point": "f"}),
    ],
)
def test_what_is_expected_never_enters_the_answers_box(use, answer):
    got = score(LOOK + use, answer)
    assert got.value == 0 and "wrong answer" in got.why and "hidden" in got.why, got
    assert score(LOOK.replace("hidden", "sesame-70137") + use, answer).value == 1  # so the look itself works


@pytest.mark.parametrize("answer", [SUM, ADD, CHECK])
def test_time_limit(answer):
    loop = "while True: pass" if answer is SUM else KNOWN + "while True: pass"
    got = score(loop, answer, time_limit=0.01)
    assert got == Score(0.0, why=f"test 1 of {2 if answer is not CHECK else 1}: time limit: longer than 0.01 s")


def test_limits_come_from_the_row_then_from_the_options():
    hungry, ram = READ + "x = bytearray(300 << 20)\nprint(a + b)", "memory limit"
    assert score(hungry, SUM).value == 1
    assert ram in score(hungry, SUM, memory_limit=200).why
    said = "</think>\n```\n" + hungry + "\n```"
    assert ram in code("", said, {"answer": SUM}, memory_limit=200).why
    assert code("", said, {"answer": SUM, "memory_limit": 600}, memory_limit=200).value == 1
    with pytest.raises(ValueError, match="time_limit is 'slow'"):
        score("", SUM, time_limit="slow")


def test_setup_and_tolerance():
    third = {"tests": [{"input": "", "output": "0.33333 x"}]}
    assert score("print(1 / 3, 'x')", third).value == 0
    assert score("print(1 / 3, 'x')", {**third, "tolerance": 1e-4}).value == 1
    assert score("print(1 / 3, 'y')", {**third, "tolerance": 1e-4}).value == 0
    typed = {"function": "f", "tests": [{"input": [[1, 2]], "output": 1.5}], "setup": "from typing import List"}
    assert score("def f(x: List[int]) -> float: return sum(x) / len(x)", typed).value == 1


@pytest.mark.parametrize(
    "row, why",
    [
        ({}, "answer is a NoneType"),
        ({"answer": {}}, "no 'tests' and no 'check'"),
        ({"answer": {"tests": []}}, "no 'tests' and no 'check'"),
        ({"answer": {"tests": [{"input": "1"}]}}, "test 1 of the row must have 'output'"),
        ({"answer": {"tests": [{"input": ["1"], "output": "1"}]}}, "which is a text"),
        ({"answer": {"function": "f", "tests": [{"input": "1", "output": "1"}]}}, "which is a list of arguments"),
        ({"answer": {"check": "pass"}}, "no 'entry_point'"),
        ({"answer": SUM, "language": "cobol"}, "language is 'cobol'"),
        ({"answer": ADD, "language": "cpp"}, "tests of a function are for python"),
        ({"answer": {"check": "assert (", "entry_point": "add"}}, "the row's check is broken: SyntaxError"),
    ],
)
def test_a_row_at_fault_is_no_wrong_answer(row, why):
    with pytest.raises(ValueError, match=".+") as e:
        code("", "</think>\n```\ndef add(a, b): pass\n```", row)
    assert why in str(e.value)


def test_cpp():
    if compiler() is None:
        pytest.skip("no C++ compiler below /usr")
    main = '#include <cstdio>\n#include <cstdlib>\n#include <new>\nint main() { long a, b; scanf("%ld %ld", &a, &b); '
    assert score(main + 'printf("%ld\\n", a + b); }', SUM, language="cpp").value == 1
    assert "test 1 of 2: wrong answer" in score(main + 'printf("%ld\\n", a - b); }', SUM, language="C++").why
    got = score(main + "print(a + b); }", SUM, language="cpp")
    assert got.value == 0 and got.why.startswith("compile error: answer.cpp:4:") and "print" in got.why
    assert "memory limit" in score(main + "char* p = new char[2ul << 30]; p[a] = 1; printf(p); }", SUM, language="cpp").why
    assert "ended by signal" in score(main + "abort(); }", SUM, language="cpp").why
    # What the compiler reads is in its box.
    assert score('#include "/etc/passwd"\n' + main + "}", SUM, language="cpp").why.startswith("compile error")


def test_cpp_cannot_leave_by_system_calls_of_another_table():
    if compiler() is None or platform.machine() != "x86_64":
        pytest.skip("no C++ compiler below /usr, or no x86-64")
    getpid32 = 'long r; asm volatile("int $0x80" : "=a"(r) : "a"(20)); printf("%ld\\n", r);'
    got = score("#include <cstdio>\nint main() { " + getpid32 + " }", SUM, language="cpp")
    assert "ended by signal 31" in got.why, got  # SIGSYS


def test_in_workers_of_less_time_and_memory_than_a_test_may_take():
    """The reward keeps its own limits: those of the pool are for the reward, not for the boxes."""
    items = [
        Item("", f"</think>\n```\n{source}\n```", {"answer": SUM, **row}, ("code",))
        for source, row in (
            ("import time\ntime.sleep(1.2)\n" + READ + "print(a + b)", {}),
            (READ + "x = bytearray(700 << 20)\nprint(a + b)", {}),
            ("while True: pass", {"time_limit": 0.01}),
            (READ, {"language": "?"}),
        )
    ]
    with Pool(Workers(count=2, timeout=1.0, memory_gib=0.5)) as pool:
        scores = [s["code"] for s in pool.score(items)]
    assert [(s.value, s.status) for s in scores] == [(1, "ok"), (1, "ok"), (0, "ok"), (0, "error")], scores


@pytest.mark.parametrize(
    "text, block",
    [
        ("</think>\n```python\na\n```\nand\n```\nb\n```\n", "b\n"),
        ("```python\na\n```\n</think>\nno code", None),
        ("<think>\n```\na\n```", None),
        ("</think>\n```python\na\n```\n```python\nb", "a\n"),
        ("</think>\n````\n```\na\n```\n````", "```\na\n```\n"),
        ("</think>\n  ~~~\n  a\n  ~~~", "  a\n"),
        ("<think> </think> <answer>\n```python\na\n```\n</answer>", "a\n"),
        ("</think> ```a```", None),
    ],
)
def test_the_last_block(text, block):
    assert last_block(text) == block


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**40), 1.5, float("inf"), "\ud800é", b"\xff", 1j, [], (1, [2]), {1: {"a"}, (2,): frozenset()}, {}],
)
def test_values_survive_the_way_out_of_the_box(value):
    got = decode(json.loads(json.dumps(encode(value))))
    assert got == value and type(got) is type(value)


def test_comparing():
    assert same_text("1 \n2\n\n", "1\n2", None) and not same_text(" 1", "1", None) and not same_text("1\n\n2", "1\n2", None)
    assert same_text("1.00001  2", "1\n2.0", 1e-4) and not same_text("1 2 3", "1 2", 1e-4) and not same_text("nan", "1", 1e9)
    assert same_value(plain(encode({1: (2, None)})), {"1": [2, None]}, None)
    assert same_value([0.1 + 0.2], [0.3], 1e-9) and not same_value([0.1 + 0.2], [0.3], None)
    assert not same_value("1", 1, 1.0) and not same_value([1], [1, 2], 1.0) and not same_value({"a": 1}, {"b": 1}, 1.0)
