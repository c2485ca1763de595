"""The parent of several processes, with small scripts as workers: who was lost is said in one line, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from r1jax import mirror, supervise

ROOT = Path(__file__).parent.parent
LONG = 600  # seconds; on an idle machine each takes 1 to 3
pytestmark = pytest.mark.timeout(2 * LONG)
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from r1jax.supervise import tell
rank = int(os.environ["R1JAX_PROCESS_ID"])
tell(phase="rollout", step=7)
"""


def parent(folder, worker, places="[Place('h:1', 2, 0), Place('h:1', 2, 1)]", settle=1.0):
    """A command with such workers, started.

    Args:
      settle: seconds, ``supervise.SETTLE``.
    """
    (folder / "worker.py").write_text(WORKER + textwrap.dedent(worker))
    program = f"""
import sys
from pathlib import Path
from r1jax import supervise
from r1jax.place import Place
supervise.SETTLE, supervise.GRACE = {settle}, 1.0
code = supervise.supervise([sys.executable, "worker.py"], {places}, Path("logs"), lambda: "; it goes on")
assert "jax" not in sys.modules
sys.exit(code)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("R1JAX_", "SLURM_"))}
    env |= {"PYTHONPATH": str(ROOT), "HOSTNAME": "here"}
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process, seconds=LONG):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def state(folder, rank):
    return json.loads((folder / "logs" / f"rank-{rank}.json").read_text())


def wait_for(path, seconds=LONG):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def lines(err):
    return [line for line in err.splitlines() if line.startswith("r1jax: ")]


def test_all_that_ends_well(tmp_path):
    code, out, err = ended(parent(tmp_path, 'print(rank, "out"); print(rank, "err", file=sys.stderr)'))
    assert (code, out, err) == (0, "0 out\n", "0 err\n")
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "0 err\n"
    assert sorted((tmp_path / "logs" / "rank-1.log").read_text().splitlines()) == ["1 err", "1 out"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_is_one_line_and_ends_all(tmp_path, rank):
    """Also what the others have started themselves, and those that do not listen."""
    worker = f"""
    if rank == {rank}:
        while not Path("ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    Path("child").write_text(str(child.pid))
    Path("ready").touch()
    time.sleep(600)
    """
    code, _, err = ended(parent(tmp_path, worker))
    assert code == 1
    host = state(tmp_path, rank)["host"]
    assert lines(err) == [
        f"r1jax: error: rank {rank} on {host} in phase rollout after step 7 was lost: signal 9 (SIGKILL); "
        f"log logs/rank-{rank}.log; all others were ended; it goes on"
    ]
    for pid in (state(tmp_path, 1 - rank)["pid"], int((tmp_path / "child").read_text())):
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_who_dies_of_anothers_death_is_not_to_blame(tmp_path):
    """One parent sees both: the first error it meets is that of the one that lost its peer."""
    worker = """
    if rank == 0:
        sys.exit(1)
    time.sleep(0.5)
    sys.exit(5)
    """
    code, _, err = ended(parent(tmp_path, worker, settle=LONG))
    assert code == 5 and "rank 1" in lines(err)[0] and "exit code 5" in lines(err)[0] and len(lines(err)) == 1


def test_a_mistake_is_said_once(tmp_path):
    said = 'print("r1jax: error: no such file", file=sys.stderr); sys.exit(2)'
    code, _, err = ended(parent(tmp_path, said, settle=LONG))
    assert code == 2 and lines(err) == ["r1jax: error: no such file"]
    code, _, err = ended(parent(tmp_path, f"if rank == 1:\n    {said}\ntime.sleep(600)"))
    host = state(tmp_path, 1)["host"]
    assert code == 2 and lines(err) == [f"r1jax: error: rank 1 on {host}: error: no such file; it goes on"]


def test_a_warning_is_shown_and_does_not_stand_for_how_a_worker_ended(tmp_path):
    worker = """
    from r1jax.supervise import warn
    if rank == 1:
        warn("no progress for 9 s")
        time.sleep(0.5)
        sys.exit(5)
    time.sleep(600)
    """
    code, _, err = ended(parent(tmp_path, worker))
    assert code == 5 and len(lines(err)) == 2
    assert lines(err)[0] == "r1jax: warning: rank 1: no progress for 9 s"
    assert "rank 1" in lines(err)[1] and "was lost: exit code 5" in lines(err)[1]


def test_a_worker_that_its_watchdog_ends_ends_all_with_its_code(tmp_path):
    worker = """
    from r1jax.config import Watchdog
    from r1jax.observe.phases import Phases
    from r1jax.observe.watchdog import Watching
    phases = Phases(told=lambda name: tell(phase=name))
    settings = Watchdog(stall_seconds=0.5 if rank == 1 else 0.0, stop=True)
    with Watching(settings, phases, lambda: 7, Path("run/logs"), process=rank), phases.open("reward", None, ""):
        time.sleep(600)
    """
    code, _, err = ended(parent(tmp_path, worker, settle=LONG / 600))
    assert code == 3 and len(lines(err)) == 1
    host = state(tmp_path, 1)["host"]
    assert lines(err)[0].startswith(f"r1jax: error: rank 1 on {host}: stopped: no progress for ")
    assert "in phase reward after step 7" in lines(err)[0] and "run/logs/stalled-1.txt" in lines(err)[0]
    assert state(tmp_path, 1)["phase"] == "reward" and 'File "' in (tmp_path / "run/logs/stalled-1.txt").read_text()


SAVES = """
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3 * rank), sys.exit(75)))
Path(f"ready{rank}").touch()
time.sleep(600)
"""


def test_sigterm_reaches_all_and_all_save(tmp_path):
    process = parent(tmp_path, SAVES)
    for rank in (0, 1):
        wait_for(tmp_path / f"ready{rank}")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, "", "")


def test_workers_do_not_outlive_their_parent(tmp_path):
    process = parent(tmp_path, "from r1jax.supervise import follow_parent\nfollow_parent()\n" + SAVES)
    for rank in (0, 1):
        wait_for(tmp_path / f"ready{rank}")
        wait_for(tmp_path / "logs" / f"rank-{rank}.json")
    pids = [state(tmp_path, rank)["pid"] for rank in (0, 1)]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + LONG
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def apart(folder, worker):
    """Two parents of a worker each, as on two machines that share a disk."""
    return [parent(folder, worker, f"[Place('h:1', 2, {rank})]") for rank in (0, 1)]


def test_parents_hear_of_each_others_loss(tmp_path):
    """Though the survivor's worker only hangs; and what an earlier attempt, of more processes, left says nothing."""
    (tmp_path / "logs").mkdir()
    old = {"rank": 2, "host": "h", "phase": "load", "step": 0, "log": "l", "ended": "exit code 9", "ended_at": time.time() - 60}
    (tmp_path / "logs" / "rank-2.json").write_text(json.dumps(old))
    worker = """
    Path(f"ready{rank}").touch()
    while rank == 0 or not Path("ready0").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for code, _, err in map(ended, apart(tmp_path, worker)):
        assert code == 1 and len(lines(err)) == 1
        assert "rank 1" in err and "after step 7 was lost: signal 9 (SIGKILL); log logs/rank-1.log" in err


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (1, "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks have crashed."),
        (0, "GRPC error information from remote target coordination_service while calling /xla.coordination: Socket closed"),
    ],
)
def test_a_lost_machine_is_named_by_what_jax_says(tmp_path, lost, words):
    """Its parent is gone too. What jax 0.10.2 prints before it aborts the survivor."""
    (tmp_path / "logs").mkdir()
    last = {"rank": lost, "host": "far", "phase": "update", "step": 6, "log": "l", "time": time.time()}
    (tmp_path / "logs" / f"rank-{lost}.json").write_text(json.dumps(last))
    survivor = 1 - lost
    worker = f"print({words!r}, file=sys.stderr, flush=True); os.abort()"
    code, _, err = ended(parent(tmp_path, worker, f"[Place('h:1', 2, {survivor})]"))
    assert code == 1 and len(lines(err)) == 1
    assert f"rank {lost} on far in phase update after step 6 was lost: rank {survivor} heard of it no more" in lines(err)[0]


def test_those_that_did_not_come_are_named(tmp_path):
    """jax aborts who waited for them."""
    (tmp_path / "logs").mkdir()
    there = {"rank": 2, "host": "far", "phase": "join", "step": 0, "log": "l", "time": time.time() + 60}
    (tmp_path / "logs" / "rank-2.json").write_text(json.dumps(there))
    code, _, err = ended(parent(tmp_path, 'tell(phase="join", step=0); os.abort()', "[Place('h:1', 4, 0)]"))
    assert code == 1 and "not all 4 processes came in time, and of rank 1, 3 nothing was heard" in lines(err)[0]


def test_news_without_a_parent_are_nobodys(monkeypatch):
    monkeypatch.delenv(supervise.NEWS, raising=False)
    supervise.tell(phase="rollout")
    monkeypatch.setenv(supervise.NEWS, "987")  # closed
    supervise.tell(phase="rollout")
    assert supervise.is_worker()


def test_the_logs_of_a_run_are_in_it_or_on_this_machine():
    assert supervise.logs_of("runs/a") == Path("runs/a/logs")
    assert supervise.logs_of("gs://bucket/runs/a") == mirror.here("gs://bucket/runs/a") / "logs"
