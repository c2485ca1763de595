"""Rewards that hang, crash, print, eat memory or lie cost one score each."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r1jax import rewards
from r1jax.config import Workers
from r1jax.rewards import Item, Pool, Score
from r1jax.rewards.accuracy import accuracy

ROOT = Path(__file__).parent.parent

REWARDS = """
import asyncio, os, signal, subprocess, sys, time
from r1jax.rewards import Score

def index(prompt, completion, row): return row["i"]
def gated(prompt, completion, row):
    while not os.path.exists(completion): time.sleep(0.01)
    return row["i"]
def counted(prompt, completion, row):
    with open(row["log"], "a+") as log:
        log.write("x")
        log.seek(0)
        first = log.read() == "x"
    if completion == "once" and first: os.kill(os.getpid(), signal.SIGKILL)
    return misbehave(prompt, completion, row)
def misbehave(prompt, completion, row):
    do = completion
    if do == "sleep": time.sleep(60)
    if do == "spin":
        while True: pass
    if do == "deaf":  # to the alarm: only a kill from outside helps
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
    if do == "catch all":
        try: time.sleep(60)
        except Exception: return 1.0
    if do == "os._exit": os._exit(0)
    if do == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if do == "abort": os.abort()
    if do == "sys.exit": sys.exit(3)
    if do == "raise": raise RuntimeError("two\\nlines")
    if do == "memory": return len(bytearray(4 << 30))
    if do == "print":
        print('["not", "a", "reply"]', flush=True)
        os.write(1, b"[0, 1.0, 'ok', '']\\n")
        subprocess.run(["echo", "neither"])
    if do.startswith("child"):
        child = subprocess.Popen(["sleep", "60"])
        with open(do.partition(" ")[2], "w") as f: f.write(str(child.pid))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
    if do == "close stdin": sys.stdin.read()
    if do == "nan": return float("nan")
    if do == "inf": return float("inf")
    if do == "none": return None
    if do == "text": return "1.0"
    if do == "score": return Score(0.25, why="so\\nso")
    if do == "failed score": return Score(0.25, "error", "judge was down")
    if do == "nan score": return Score(float("nan"))
    if do == "bool": return True
    return 1.0
async def later(prompt, completion, row):
    await asyncio.sleep(60 if completion == "sleep" else 0.001)
    if completion == "raise": raise KeyError("k")
    return 0.5
"""
MISBEHAVIOUR = {
    "well": (1.0, "ok", ""),
    "sleep": (0.0, "timeout", "longer than 1.5 s"),
    "spin": (0.0, "timeout", "longer than 1.5 s"),
    "deaf": (0.0, "timeout", "had to be killed"),
    "catch all": (0.0, "timeout", "longer than 1.5 s"),
    "os._exit": (0.0, "crash", "exited with status 0"),
    "abort": (0.0, "crash", "died of signal 6 (Aborted)"),
    "sys.exit": (0.0, "error", "SystemExit: 3"),
    "raise": (0.0, "error", "RuntimeError: two lines (bad.py:"),
    "memory": (0.0, "error", "MemoryError"),
    "print": (1.0, "ok", ""),
    "close stdin": (1.0, "ok", ""),
    "nan": (0.0, "invalid", "returned nan"),
    "inf": (0.0, "invalid", "returned inf"),
    "none": (0.0, "invalid", "returned NoneType None, not a number"),
    "text": (0.0, "invalid", "returned str '1.0', not a number"),
    "score": (0.25, "ok", "so so"),
    "failed score": (0.0, "error", "judge was down"),
    "nan score": (0.0, "invalid", "returned nan"),
    "bool": (1.0, "ok", ""),
}


@pytest.fixture
def bad(tmp_path):
    """The import path, up to the function's name, of a file of rewards."""
    path = tmp_path / "bad.py"
    path.write_text(REWARDS)
    return f"{path}:"


def numbered(n, *names, completion=""):
    return [Item("p", completion, {"i": i}, names) for i in range(n)]


def running_workers(parent: int | None = None) -> list[int]:
    """Process ids of the live reward workers (below ``parent``)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            _, _, fields = (path / "stat").read_text().rpartition(") ")
        except OSError:  # it ended meanwhile
            continue
        state, ppid = fields.split()[:2]
        if b"r1jax.rewards.worker" in command and state != "Z" and parent in (None, int(ppid)):
            found.append(int(path.name))
    return found


def is_alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_every_misbehaviour_costs_exactly_one_score(bad, capfd):
    reward, index = bad + "misbehave", bad + "index"
    items = [Item("p", do, {"i": i}, (index, reward, "format")) for i, do in enumerate(MISBEHAVIOUR)]
    with Pool(Workers(count=2, timeout=1.5, memory_gib=1.0)) as pool:
        scores = pool.score(items)
    for i, (do, (value, status, why)) in enumerate(MISBEHAVIOUR.items()):
        assert list(scores[i]) == [index, reward, "format"]
        assert scores[i][index] == Score(float(i)), do
        assert scores[i]["format"] == Score(0.0, why="missing <think>"), do
        got = scores[i][reward]
        assert (got.value, got.status) == (value, status), (do, got)
        assert why in got.why and "\n" not in got.why, (do, got)
    assert "neither" in capfd.readouterr().err


def test_async_rewards(bad):
    items = [Item("p", do, {}, (bad + "later",)) for do in ("", "sleep", "raise", "")]
    with Pool(Workers(count=1, timeout=1.0)) as pool:
        scores = [s[bad + "later"] for s in pool.score(items)]
    assert [(s.value, s.status) for s in scores] == [(0.5, "ok"), (0.0, "timeout"), (0.0, "error"), (0.5, "ok")]
    assert "KeyError: 'k'" in scores[2].why


def test_a_bad_reward_is_refused_before_anything_is_scored(bad, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(4)\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    cases = {
        "acuracy": "not a built-in (accuracy, ",
        "no.such.module:f": "No module named 'no'",
        f"{tmp_path}/none.py:f": "there is no file",
        bad + "indxe": "has no 'indxe'; it defines index",
        f"{tmp_path}/broken.py:f": "No module named 'no_such_module'",
        f"{tmp_path}/dies.py:f": "exited with status 4 while importing it",
        f"{tmp_path}/syntax.py:f": "SyntaxError",
        "math:pi": "is no function",
    }
    marker = tmp_path / "scored"
    (tmp_path / "marks.py").write_text(f"def f(p, c, r):\n    open({str(marker)!r}, 'w').close()\n    return 1.0\n")
    with Pool(Workers(count=1)) as pool:
        with pytest.raises(ValueError) as error:
            pool.score([Item("p", "", {}, (f"{tmp_path}/marks.py:f", *cases))])
        assert "\n" not in str(error.value)
        for name, why in cases.items():
            part = next(p for p in str(error.value).split("; reward ") if repr(name) in p)
            assert why in part, (name, part)
        assert not marker.exists()
        assert pool.score([Item("p", "", {}, (f"{tmp_path}/marks.py:f",))])[0][f"{tmp_path}/marks.py:f"].value == 1.0


def test_rewards_are_loaded_by_module_file_and_name(bad, tmp_path, monkeypatch):
    assert rewards.load("r1jax.rewards.format:format") is rewards.load("format")
    assert rewards.load(bad + "index")("p", "", {"i": 7}) == 7
    (tmp_path / "helper.py").write_text("VALUE = 0.75\n")
    (tmp_path / "mine.py").write_text("from helper import VALUE\ndef f(p, c, r): return VALUE\n")
    monkeypatch.chdir(tmp_path)
    with Pool(Workers(count=1)) as pool:
        assert pool.score([Item("p", "", {}, ("mine.py:f", "mine:f"))]) == [{"mine.py:f": Score(0.75), "mine:f": Score(0.75)}]


def test_killing_workers_at_random_changes_no_score(bad):
    """A kill comes some time after every 500 items or so: so no item can be hit for ever, however slow the machine."""
    rng = random.Random(0)
    index, batch = bad + "index", 50
    answers = [(r"\frac{%d}{\sqrt{2}}" if i % 200 == 7 else "%d") % rng.randrange(1, 4) for i in range(5000)]
    rows = [{"i": i, "answer": rf"\frac{{2\sqrt{{2}}}}{{{1 + i % 3}}}" if i % 200 == 7 else 2} for i in range(5000)]
    items = [
        Item("p", f"<think>a</think> <answer>{a}</answer>", row, (index, "accuracy", "format"))
        for a, row in zip(answers, rows, strict=True)
    ]
    done, kills, stop = threading.Semaphore(0), [], threading.Event()

    def kill_now_and_then():
        while not stop.is_set():
            for _ in range(rng.randrange(5, 16)):
                done.acquire()
            time.sleep(rng.uniform(0, 0.1))
            if not stop.is_set() and (workers := running_workers(os.getpid())):
                kills.append(rng.choice(workers))
                os.kill(kills[-1], signal.SIGKILL)

    with Pool(Workers(count=2, timeout=60.0)) as pool:
        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        futures = []
        for i in range(0, len(items), batch):
            futures.append(pool.submit(items[i : i + batch]))
            futures[-1].add_done_callback(lambda _: done.release())
        found = [scores for future in futures for scores in future.result()]
        stop.set()
        done.release(20)
        killer.join()
    assert len(kills) >= 5
    for item, scores in zip(items, found, strict=True):
        expected = [item.row["i"], accuracy(item.prompt, item.completion, item.row).value, 1.0]
        assert [(s.value, s.status) for s in scores.values()] == [(value, "ok") for value in expected], item
    assert {s["accuracy"].value for s in found[7::200]} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("do", "starts", "status"), [("kill", 10, "crash"), ("os._exit", 2, "crash"), ("deaf", 1, "timeout"), ("once", 2, "ok")]
)
def test_a_death_is_tried_again_and_a_timeout_is_not(bad, tmp_path, do, starts, status):
    """A worker that somebody else killed must not cost the answer that it was scoring."""
    reward = bad + "counted"
    item = Item("p", do, {"log": str(tmp_path / "log")}, (reward,))
    with Pool(Workers(count=1, timeout=1.0)) as pool:
        scores = pool.score([item, Item("p", "", {"log": "/dev/null"}, (reward,))])
    assert [s[reward].status for s in scores] == [status, "ok"]
    assert "(Killed)" in scores[0][reward].why or do != "kill"
    assert len((tmp_path / "log").read_text()) == starts


def test_a_worker_killed_while_it_imports_is_started_again(tmp_path):
    """More often than a reward may end its worker by itself: a slow import is long under fire."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        f"log = open({str(tmp_path / 'log')!r}, 'a+'); log.write('x'); log.seek(0)\n"
        "if len(log.read()) < 6: log.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "def f(p, c, r): return 1.0\n"
    )
    (tmp_path / "lazy.py").write_text(
        "from r1jax.rewards.slow_import import slow_import\ndef f(p, c, r): return slow_import('slow').f(p, c, r)\n"
    )
    for file in ("slow", "lazy"):
        (tmp_path / "log").unlink(missing_ok=True)
        with Pool(Workers(count=1)) as pool:
            assert pool.score([Item("p", "", {}, (f"{tmp_path}/{file}.py:f",))])[0][f"{tmp_path}/{file}.py:f"] == Score(1.0)


def test_submitting_waits_while_the_queue_is_full(bad, tmp_path):
    """Items wait for a file; what is submitted beyond the queue waits with its caller."""
    reward, gate = bad + "gated", tmp_path / "gate"
    futures = []

    def submit():
        for i in range(6):
            futures.append(pool.submit([Item("p", str(gate), {"i": 2 * i + k}, (reward,)) for k in range(2)]))

    with Pool(Workers(count=1, timeout=60.0, queue=4)) as pool:
        pool.check([reward])
        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.3)
        assert len(futures) == 2 and thread.is_alive()
        gate.touch()
        thread.join(timeout=30)
        assert [s[reward].value for future in futures for s in future.result()] == list(range(12))
        big = pool.score(numbered(50, bad + "index"))  # more than the queue at once
        assert [s[bad + "index"].value for s in big] == list(range(50))


def test_closing_wakes_who_waits_for_room(bad, tmp_path):
    pool, told = Pool(Workers(count=1, timeout=60.0, queue=1)), []

    def submit():
        try:
            pool.submit([Item("p", str(tmp_path / "never"), {"i": i}, (bad + "gated",)) for i in range(3)])
        except ValueError as e:
            told.append(str(e))

    pool.check([bad + "gated"])
    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.2)
    pool.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and "closed" in told[0]


def test_a_stream_keeps_order_and_reads_no_further_ahead_than_its_queue(bad):
    read, ahead = 0, []

    def endless():
        nonlocal read
        while True:
            yield Item("p", "", {"i": read}, (bad + "index",))
            read += 1

    with Pool(Workers(count=2, queue=600)) as pool:
        for i, scores in enumerate(pool.stream(endless())):
            assert scores[bad + "index"].value == i
            ahead.append(read - i)
            if i == 3000:
                break
        few = [s[bad + "index"].value for s in pool.stream(iter(numbered(7, bad + "index")))]
    assert 256 <= max(ahead) <= 600
    assert few == list(range(7)) and not list(pool.stream([]))


def test_many_threads_score_at_once(bad):
    results = {}

    def work(k):
        results[k] = pool.score([Item("p", "", {"i": 1000 * k + i}, (bad + "index",)) for i in range(50)])

    with Pool(Workers(count=2)) as pool:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.score([]) == []
    for k in range(6):
        assert [s[bad + "index"].value for s in results[k]] == [1000 * k + i for i in range(50)]


def test_texts_larger_than_a_pipe(bad):
    with Pool(Workers(count=1, timeout=30.0)) as pool:
        items = numbered(20, bad + "index", completion="\ud800 é" * 200_000)
        assert [s[bad + "index"].value for s in pool.score(items)] == list(range(20))


def test_pools_leave_nothing_behind(bad):
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(4):
        with Pool(Workers(count=2)) as pool:
            pool.score(numbered(4, bad + "index"))
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert not running_workers(os.getpid())
    with pytest.raises(ValueError, match="closed"):
        pool.score(numbered(1, bad + "index"))


def test_closing_ends_a_score_that_hangs(bad):
    pool = Pool(Workers(count=1, timeout=60.0))
    pool.check([bad + "misbehave"])
    future = pool.submit([Item("p", "sleep", {}, (bad + "misbehave",))])
    time.sleep(0.2)
    start = time.monotonic()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        future.result(timeout=5)
    assert time.monotonic() - start < 5


def test_workers_end_with_their_parent(bad):
    code = f"""
from r1jax.config import Workers
from r1jax.rewards import Item, Pool
pool = Pool(Workers(count=2, timeout=1.0))
pool.score([Item("p", "", {{"i": 0}}, ({bad + "index"!r},))] * 64)
pool.submit([Item("p", "spin", {{}}, ({bad + "misbehave"!r},))])
print("ready", flush=True)
import time; time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        workers = running_workers(parent.pid)
        parent.kill()
    assert workers
    deadline = time.monotonic() + 15
    while set(workers) & set(running_workers()):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_what_a_killed_worker_started_ends_too(bad, tmp_path):
    with Pool(Workers(count=1, timeout=1.0)) as pool:
        assert (
            pool.score([Item("p", f"child {tmp_path}/pid", {}, (bad + "misbehave",))])[0][bad + "misbehave"].status == "timeout"
        )
    child, deadline = (tmp_path / "pid").read_text(), time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline, "a reward's child outlived its worker"
        time.sleep(0.05)


def test_a_row_that_is_not_json_is_refused(bad):
    with Pool(Workers(count=1)) as pool, pytest.raises(ValueError, match="item 1: its prompt or row does not fit JSON"):
        pool.score([Item("p", "", {"i": 0}, (bad + "index",)), Item("p", "", {"i": {1, 2}}, (bad + "index",))])


def test_a_slow_import_does_not_count_against_the_time_limit(tmp_path):
    (tmp_path / "heavy.py").write_text("import time\ntime.sleep(1.0)\n")
    (tmp_path / "lazy.py").write_text(
        "from r1jax.rewards.slow_import import slow_import\n"
        "def f(p, c, r):\n    slow_import('heavy')\n    return 1.0\n"
        "def g(p, c, r):\n    import heavy\n    return 1.0\n"
    )
    f, g = f"{tmp_path}/lazy.py:f", f"{tmp_path}/lazy.py:g"
    with Pool(Workers(count=1, timeout=1.0)) as pool:
        assert pool.score([Item("p", "", {}, (f,))])[0][f] == Score(1.0)
    with Pool(Workers(count=1, timeout=1.0)) as pool:
        assert pool.score([Item("p", "", {}, (g,))])[0][g].status == "timeout"


def test_latex_is_compared_in_a_worker():
    item = Item("p", r"\boxed{\frac{\sqrt{2}}{2}}", {"answer": r"\frac{1}{\sqrt{2}}"}, ("accuracy",))
    with Pool(Workers(count=1)) as pool:
        assert pool.score([item])[0]["accuracy"].value == 1.0


def test_simple_scores_are_cheap():
    items = [
        Item("p", f"<think>{'word ' * 100}</think> <answer>{i}</answer>", {"answer": i}, ("accuracy", "format"))
        for i in range(2000)
    ]
    before = sum(os.times()[:4])
    with Pool(Workers(count=2)) as pool:
        scores = pool.score(items)
    assert all(s["accuracy"].value == s["format"].value == 1.0 for s in scores)
    # Processor seconds of this process and its children: idle cores give more than 2000 scores a second on two of them.
    assert sum(os.times()[:4]) - before < 4.0


def test_the_room_starts_without_heavy_libraries():
    code = (
        "import sys, time, r1jax.rewards.worker, r1jax.rewards.accuracy\n"
        "print(time.process_time(), *[m for m in ('jax', 'numpy', 'sympy', 'math_verify', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ).stdout.split()
    assert out[1:] == []
    assert float(out[0]) < 1.0
