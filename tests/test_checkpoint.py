"""Checkpoints: exact, atomic, resharded, and every flipped byte noticed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax.checkpoint import Checkpointer, CheckpointError

PYTHON_ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}


def script(body: str, *args: object, env: dict | None = None, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), *map(str, args)],
        env=PYTHON_ENV | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def output_of(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return out


def state(fill: float = 0.0) -> dict:
    return {
        "params": {
            "segments": ({"q": jnp.arange(12.0).reshape(3, 4) + fill, "bias": None}, {"q": jnp.ones((2, 2), jnp.bfloat16)})
        },
        "moments": (jnp.full((3, 4), fill), None),
        "count": jnp.int32(7),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "step": 5,
        "flag": True,
        "ratio": 0.1,
    }


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x, tree
    )


def bits(x) -> tuple:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return ("key", str(jax.random.key_impl(x)), np.asarray(jax.random.key_data(x)).tobytes(), x.shape)
    return (str(x.dtype), np.asarray(x).tobytes(), x.shape) if hasattr(x, "dtype") else (type(x), x)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert bits(x) == bits(y)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 10 and 20."""
    checkpointer = Checkpointer(tmp_path / "run" / "checkpoints")
    checkpointer.save(10, state(1.0), {"cursor": {"index": 320}}, score=0.5)
    checkpointer.save(20, state(2.0), {"cursor": {"index": 640}}, score=0.25)
    checkpointer.wait()
    yield checkpointer
    checkpointer.close()


def test_restores_every_kind_of_leaf_exactly(run):
    restored, meta = run.restore(abstract(state()))
    assert_same(restored, state(2.0))
    assert meta == {"cursor": {"index": 640}} == run.meta(20)
    restored, meta = run.restore(abstract(state()), step=10)
    assert_same(restored, state(1.0))
    assert meta == {"cursor": {"index": 320}}
    # The keys go on with the same stream.
    assert float(jax.random.normal(restored["key"])) == float(jax.random.normal(jax.random.key(3)))


def test_restores_the_parameters_alone_on_the_host(run):
    wanted = jax.eval_shape(lambda: state()["params"])
    params = run.restore_part(10, {"params": wanted})["params"]
    assert isinstance(params["segments"][0]["q"], np.ndarray)
    assert params["segments"][1]["q"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["segments"][0]["q"], np.arange(12.0).reshape(3, 4) + 1)
    assert params["segments"][0]["bias"] is None


def test_saves_what_was_there_when_save_was_called(tmp_path):
    update = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    x = jax.random.normal(jax.random.key(0), (256, 4096))
    before = np.array(x)
    checkpointer.save(1, {"x": x}, {})
    update(x).block_until_ready()  # the buffer is donated while the save goes on
    checkpointer.wait()
    np.testing.assert_array_equal(checkpointer.restore_part(1, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})["x"], before)
    checkpointer.close()


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_one_flipped_bit_in_any_file_is_noticed(run):
    path = run.directory / "20"
    names = {p.relative_to(path).parts[0] for p in files_of(path)}
    assert {"about.json", "digests-0-of-1", "state"} <= names
    for file in files_of(path):
        good = file.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(CheckpointError) as error:
                run.restore(abstract(state()), step=20)
            assert file.name in str(error.value) and f"{run.directory.parent}@10" in str(error.value), error.value
            assert "\n" not in str(error.value)
        file.write_bytes(good)
    run.restore(abstract(state()), step=20)


def test_answers_of_any_shape_come_back_and_one_flipped_bit_of_them_is_noticed(tmp_path):
    given = {"kept/tokens": np.arange(6, dtype=np.int32).reshape(2, 3), "ahead/routes": np.full((2, 0, 1), 255, np.uint8)}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"x": jnp.zeros(2)}, {}, answers=given)
    checkpointer.save(2, {"x": jnp.zeros(2)}, {})
    checkpointer.wait()
    found = checkpointer.answers(1)
    assert found.keys() == given.keys() and checkpointer.answers(2) == {}
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    file = tmp_path / "1" / "answers.npz"
    good = file.read_bytes()
    file.write_bytes(good[:90] + bytes([good[90] ^ 1]) + good[91:])
    with pytest.raises(CheckpointError, match="answers.npz has changed"):
        checkpointer.answers(1)
    with pytest.raises(CheckpointError, match="answers.npz has changed"):
        checkpointer.restore_part(1, {"x": jax.ShapeDtypeStruct((2,), "float32")})
    checkpointer.close()


def test_any_flipped_bit_of_the_digests_is_noticed(run):
    file = run.directory / "20" / "digests-0-of-1"
    good = file.read_bytes()
    for place in (*range(0, len(good), 11), len(good) - 1):
        for bit in (0x01, 0x20):  # 0x20 turns a hex digit's case over
            file.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with pytest.raises(CheckpointError, match="digests-0-of-1 has changed"):
                run.meta(20)


def test_cut_emptied_and_missing_files_are_noticed(run):
    path = run.directory / "20"
    for file in files_of(path):
        good = file.read_bytes()
        for damage in (
            lambda f, good: f.write_bytes(good[:-1]),
            lambda f, good: f.write_bytes(b""),
            lambda f, good: f.unlink(),
        ):
            damage(file, good)
            with pytest.raises(CheckpointError, match="digests" if file.name.startswith("digests") else file.name):
                run.restore(abstract(state()), step=20)
            file.write_bytes(good)
    run.restore(abstract(state()), step=20)


def test_a_byte_flipped_in_the_weights_is_noticed_by_restore_part_too(run):
    data = max((run.directory / "20" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    good = data.read_bytes()
    data.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=data.name):
        run.restore_part(20, {"params": jax.eval_shape(lambda: state()["params"])})


def test_another_model_is_refused_with_the_array_that_differs(run):
    wanted = abstract(state())
    wider = wanted | {"count": jax.ShapeDtypeStruct((3,), jnp.int32)}
    with pytest.raises(CheckpointError, match=r"count is int32\[\] where int32\[3\] is needed"):
        run.restore(wider)
    with pytest.raises(CheckpointError, match=r"count is int32\[\] where float32\[\] is needed"):
        run.restore(wanted | {"count": jax.ShapeDtypeStruct((), jnp.float32)})
    with pytest.raises(CheckpointError, match="adapter is not in it"):
        run.restore(wanted | {"adapter": jax.ShapeDtypeStruct((), jnp.float32)})
    with pytest.raises(CheckpointError, match="it holds count"):
        run.restore({k: v for k, v in wanted.items() if k != "count"})


def test_asking_for_a_step_that_is_not_there_names_those_that_are(run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of step 15; there are: 10, 20"):
        run.restore(abstract(state()), step=15)
    empty = Checkpointer(tmp_path / "none", read_only=True)
    assert empty.latest() is None and empty.best() is None and empty.steps() == []
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        empty.restore({})
    empty.close()


def test_the_newest_and_the_best_stay(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    kept = {}
    for step, score in [(1, 0.3), (2, 0.9), (3, None), (4, 0.9), (5, 0.1), (6, 0.2)]:
        checkpointer.save(step, {"x": jnp.float32(step)}, {}, score=score)
        checkpointer.wait()
        kept[step] = (checkpointer.steps(), checkpointer.best())
    assert kept == {
        1: ([1], 1),
        2: ([1, 2], 2),
        3: ([2, 3], 2),
        4: ([3, 4], 4),
        5: ([4, 5], 4),
        6: ([4, 5, 6], 4),
    }
    checkpointer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5", "6"]
    again = Checkpointer(tmp_path, keep=1)
    again.save(4, {"x": jnp.float32(-1)}, {}, score=0.5)  # replaces; what was just saved stays whatever its step
    again.wait()
    assert again.steps() == [4, 6] and float(again.restore_part(4, {"x": jnp.float32(0)})["x"]) == -1
    again.close()


def test_a_reader_deletes_nothing_and_a_trainer_clears_what_a_kill_left(run):
    left = [run.directory / ".saving-30", run.directory / ".deleting-5"]
    for path in left:
        shutil.copytree(run.directory / "20", path)
    reader = Checkpointer(run.directory, read_only=True)
    assert reader.latest() == 20 and all(path.exists() for path in left)
    reader.close()
    trainer = Checkpointer(run.directory)
    assert trainer.steps() == [10, 20] and not any(path.exists() for path in left)
    trainer.close()


def test_without_digests_there_is_no_checkpoint(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r1jax.durable.digests", full)
    run.save(30, state(), {})
    with pytest.raises(
        CheckpointError, match="could not save step 30 .*No space left on device; the checkpoint of step 20 is intact"
    ):
        run.wait()
    monkeypatch.undo()
    assert run.steps() == [10, 20] and not (run.directory / ".saving-30").exists()
    assert_same(run.restore(abstract(state()))[0], state(2.0))


def test_a_save_returns_while_its_arrays_are_still_being_written(tmp_path, monkeypatch):
    """By events: the writing waits until the state that is saved was changed, and the save after it until it was written."""
    from orbax.checkpoint._src.serialization import serialization

    may_write, wrote = threading.Event(), threading.Event()
    serialize = serialization.async_serialize_from_host

    async def held_up(*args, **options):
        assert may_write.wait(300)
        done = await serialize(*args, **options)
        wrote.set()
        return done

    monkeypatch.setattr(serialization, "async_serialize_from_host", held_up)
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    x = jnp.zeros((64, 64))
    checkpointer.save(1, {"x": x}, {}, answers={"tokens": np.arange(4)})
    for _ in range(3):
        x = update(x)
    x.block_until_ready()
    assert not wrote.is_set() and checkpointer.steps() == [] and not list(tmp_path.glob("*/answers.npz"))
    may_write.set()
    checkpointer.save(2, {"x": x}, {})
    assert wrote.is_set() and checkpointer.steps() == [1]  # one copy at a time
    checkpointer.wait()
    wanted = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    assert [float(checkpointer.restore(wanted, step)[0]["x"].sum()) for step in (1, 2)] == [0.0, 3.0 * x.size]
    assert checkpointer.answers(1)["tokens"].tolist() == [0, 1, 2, 3]
    checkpointer.close()


def flip(path: Path) -> None:
    data = max((path / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + b"?")


def cut(path: Path) -> None:
    data = max((path / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])


def lose(path: Path) -> None:
    (path / "about.json").unlink()


def write_half(path: Path) -> None:
    shutil.rmtree(path / "state")
    (path / "digests-0-of-1").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip, "has changed"), (cut, "has changed"), (lose, "about.json is missing"), (write_half, "20 has no digests")],
)
def test_the_newest_that_is_whole_is_gone_on_from_and_damaged_ones_are_put_aside(run, damage, said):
    assert run.newest_good() == (20, "")
    damage(run.directory / "20")
    step, told = run.newest_good()
    assert step == 10 and told.startswith("the checkpoint of step 20 is damaged (") and said in told and "\n" not in told
    assert run.steps() == [10] and (run.directory / "damaged-20").is_dir()
    assert_same(run.restore(abstract(state()), step)[0], state(1.0))
    # Its step is free again, and the one that was put aside stays for whoever wants to see it.
    run.save(20, state(3.0), {}, score=0.1)
    run.wait()
    assert run.newest_good() == (20, "") and run.steps() == [10, 20] and (run.directory / "damaged-20").is_dir()


def test_where_none_is_whole_that_is_said_and_none_is_touched(run):
    for step in (10, 20):
        flip(run.directory / str(step))
    with pytest.raises(CheckpointError, match=r"step 20 is damaged .*; .*step 10 is damaged .*no other is left: remove "):
        run.newest_good()
    assert run.steps() == [10, 20]


def test_what_a_kill_left_over_keep_goes_once_the_newest_was_found_whole(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=9)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4]):
        checkpointer.save(step, {"x": jnp.float32(step)}, {}, score=score)
    checkpointer.close()
    flip(tmp_path / "4")
    again = Checkpointer(tmp_path, keep=2)
    assert again.steps() == [0, 1, 2, 3, 4]  # the newest may be damaged: nothing is removed before that is known
    assert again.newest_good()[0] == 3 and again.steps() == [1, 2, 3]
    again.close()
    assert Checkpointer(tmp_path / "none").newest_good() == (None, "")


def test_a_save_that_failed_behind_is_known_before_the_next(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r1jax.durable.digests", full)
    run.save(30, state(), {})
    deadline = time.monotonic() + 300
    while not run.failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="could not save step 30"):
        run.wait()
    assert not run.failed
    monkeypatch.undo()
    run.save(30, state(), {})
    run.wait()
    assert run.steps() == [10, 20, 30]  # of which 10 is the best


def test_with_a_damaged_checkpoint_nothing_is_deleted(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step in range(4):
        checkpointer.save(step, {"x": jnp.float32(step)}, {}, score=float("nan") if step else 1.0)
        checkpointer.wait()
        if step == 1:
            (tmp_path / "0" / "about.json").write_text("{}")
    assert checkpointer.steps() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="about.json"):
        checkpointer.best()
    checkpointer.close()


SAVE_FOR_EVER = """
    import sys, jax, jax.numpy as jnp
    from r1jax.checkpoint import Checkpointer
    checkpointer = Checkpointer(sys.argv[1])
    step = (checkpointer.latest() or 0) + 1
    while True:
        checkpointer.save(step, {"x": jnp.full((64, 4096), step, jnp.float32), "n": step}, {"step": step}, score=-step)
        print(step, flush=True)
        step += 1
"""


def test_killed_while_saving_the_latest_checkpoint_is_whole(tmp_path):
    luck = random.Random(0)
    wanted = {"x": jax.ShapeDtypeStruct((64, 4096), jnp.float32), "n": 0}
    reader = Checkpointer(tmp_path, read_only=True)
    reached = 0
    for _ in range(3):
        process = script(SAVE_FOR_EVER, tmp_path)
        process.stdout.readline(), process.stdout.readline()
        time.sleep(luck.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        latest = reader.latest()
        assert latest > reached
        reached = latest
        # The best (the first), and the two newest: exactly these once the run goes on.
        trainer = Checkpointer(tmp_path)
        assert trainer.newest_good() == (latest, "") and reader.steps() == sorted({1, max(1, latest - 1), latest})
        trainer.close()
        for step in reader.steps():
            restored, meta = reader.restore(wanted, step)
            assert meta == {"step": step} and restored["n"] == step and np.all(restored["x"] == step)
    reader.close()


def test_a_full_disk_is_one_line_and_spares_the_checkpoints_before(tmp_path):
    body = """
        import sys, resource, jax.numpy as jnp
        from r1jax.checkpoint import Checkpointer, CheckpointError
        checkpointer = Checkpointer(sys.argv[1])
        checkpointer.save(1, {"x": jnp.ones(8)}, {}); checkpointer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            checkpointer.save(2, {"x": jnp.ones(100_000)}, {}); checkpointer.wait()
        except CheckpointError as error:
            print(error)
        checkpointer.save(3, {"x": jnp.ones(8)}, {}); checkpointer.close()
        print(checkpointer.steps())
    """
    process = script(body, tmp_path)
    out, err = process.communicate(timeout=120)
    lines = out.splitlines()
    assert (
        len(lines) == 2
        and "could not save step 2" in lines[0]
        and "File too large" in lines[0]
        and "step 1 is intact" in lines[0]
    )
    assert lines[1] == "[1, 3]"
    assert "Traceback" not in err and "INFO" not in err


WHOLE = np.arange(64.0, dtype=np.float32).reshape(8, 8)


def on_mesh(shape: tuple[int, int], spec: P) -> jax.Array:
    return jax.device_put(WHOLE, NamedSharding(Mesh(np.array(jax.devices()).reshape(shape), ("a", "b")), spec))


def assert_shards(x: jax.Array, expected: np.ndarray):
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])


def test_saved_on_a_4x2_mesh_and_restored_on_2x4(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"x": on_mesh((4, 2), P("a", "b"))}, {})
    checkpointer.wait()
    target = {"x": on_mesh((2, 4), P("b", "a")) * 0}
    restored, _ = checkpointer.restore(target)
    checkpointer.close()
    assert restored["x"].sharding == target["x"].sharding
    assert_shards(restored["x"], WHOLE)


TWO_PROCESSES = """
    import sys, jax, numpy as np
    from pathlib import Path
    directory, process, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from r1jax import durable, processes, sharding
    from r1jax.checkpoint import Checkpointer, CheckpointError
    from r1jax.config.base import ProcessLost

    whole = np.arange(64.0, dtype=np.float32).reshape(8, 8)

    def state(shape, spec, fill):
        sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(shape), ("a", "b")), spec)
        x = jax.make_array_from_callback((8, 8), sharding, lambda index: fill + whole[index])
        key = jax.jit(lambda: jax.random.key(9), out_shardings=NamedSharding(sharding.mesh, P()))()
        return {"x": x, "none": None, "key": key}

    checkpointer = Checkpointer(directory)
    restored, _ = checkpointer.restore({"x": state((4, 2), P("a", "b"), 0)["x"]}, step=0)
    for shard in restored["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, (7 + whole)[shard.index])
    for step in (1, 2, 3):
        checkpointer.save(step, state((4, 2), P("a", "b"), step), {"step": step})
    checkpointer.wait()
    target = state((2, 4), P("b", "a"), 0)
    restored, meta = checkpointer.restore(target)
    assert restored["x"].sharding == target["x"].sharding
    for shard in restored["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, (3 + whole)[shard.index])
    assert np.array_equal(*(jax.random.key_data(s["key"]).addressable_data(0) for s in (restored, target)))
    print("exact", meta, checkpointer.steps())

    def full(*_):
        raise OSError(28, "No space left on device")

    digests = durable.digests
    if process == 1:
        durable.digests = full
    try:
        checkpointer.save(4, target, {})
        checkpointer.wait()
    except CheckpointError as error:
        print(error, checkpointer.steps())
    durable.digests = digests

    if process == 0:
        data = max((directory / "3" / "state" / "ocdbt.process_1").rglob("d/*"), key=lambda p: p.stat().st_size)
        good = data.read_bytes()
        data.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    processes.meet("damaged")
    try:
        checkpointer.restore(target)
    except CheckpointError as error:
        print(error)
    checkpointer.close()

    assert processes.gather("ranks", np.array(process)).tolist() == [0, 1]
    assert [processes.first_says("first", process == i) for i in (0, 1)] == [True, False]
    assert [processes.any_of("any", process == i) for i in (0, 1, 2)] == [True, True, False]
    assert processes.beside() == 2
    rows = sharding.fetch_rows(state((4, 2), P("a", "b"), 1)["x"], [6, 1, 3])
    assert np.array_equal(rows[[6, 1, 3]], (1 + whole)[[6, 1, 3]]) and not rows[[0, 2, 4, 5, 7]].any()
    try:
        if process == 0:
            processes.meet("lunch", seconds=1)
    except ProcessLost as error:
        print(error)
    processes.meet("dinner")
"""


def test_two_processes_save_restore_and_agree_on_damage(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    alone = Checkpointer(tmp_path)  # what one process saved, two restore
    alone.save(0, {"x": 7 + on_mesh((2, 4), P("a", "b"))}, {})
    alone.close()
    started = [script(TWO_PROCESSES, tmp_path, process, port, env=env) for process in range(2)]
    # Gloo's threads write to the same stream, and tear each other's lines.
    ours = ("exact", "could not save", "damaged checkpoint", "lunch")
    told = [[line for line in output_of(p).splitlines() if any(word in line for word in ours)] for p in started]
    assert [lines[0] for lines in told] == ["exact {'step': 3} [2, 3]"] * 2
    # Where one fails, both say so.
    assert all("could not save step 4" in lines[1] and lines[1].endswith("[2, 3]") for lines in told)
    assert "another process failed" in told[0][1] and "No space left on device" in told[1][1]
    assert all("damaged checkpoint" in lines[2] and f"start from {tmp_path}@2" in lines[2] for lines in told)
    assert any("ocdbt.process_1" in lines[2] for lines in told)
    # Who waits says where, for how long and for whom; the other never heard of it, and both go on.
    where = f"waited at 'lunch' for 1 s, and process 1 on {socket.gethostname()} did not come"
    assert where in told[0][3] and len(told[1]) == 3

    alone = Checkpointer(tmp_path, read_only=True)
    target = {"x": on_mesh((2, 4), P("b", "a")), "none": None, "key": jax.random.key(0)}
    restored, _ = alone.restore(target, step=2)
    alone.close()
    assert_shards(restored["x"], 2 + WHOLE)
    assert bits(restored["key"]) == bits(jax.random.key(9))
