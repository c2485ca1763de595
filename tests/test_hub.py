import importlib.util
import socket
import sys

import fsspec
import pytest
from hub_server import COMMIT, TOKEN, Bucket, serve

from r1jax import hub

RESOLVE = """
import sys
from r1jax import hub
for name in sys.argv[1:]:
    try:
        path = hub.resolve(name)
        print(path, hub.commit(path))
    except ValueError as error:
        print(error)
"""
LLAMA = {
    name: f"the content of {name}".encode()
    for name in (
        *("config.json", "tokenizer.json", "model.safetensors.index.json"),
        *("model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"),
    )
}
UNWANTED = {
    name: f"the content of {name}".encode()
    for name in (
        *("README.md", "modeling_llama.py", "pytorch_model.bin", "original/consolidated.00.pth", "quantised.gguf"),
        *("consolidated.safetensors", "onnx/model.safetensors"),
    )
}


@pytest.fixture
def server():
    with serve() as found:
        found.repos = {
            "org/llama-3.1-8B": LLAMA | UNWANTED,
            "org/gguf": {"README.md": b"", "tiny-f16.gguf": b"GGUF"},
            "org/ggufs": {"a-q4.gguf": b"", "a-q8.gguf": b""},
            "org/bin": {"config.json": b"{}", "pytorch_model.bin": b""},
            "org/gated": LLAMA,
            "org/private": LLAMA,
        }
        found.gated, found.private = {"org/gated"}, {"org/private"}
        yield found


def snapshot(home, repo):
    return f"{home}/hub/models--{repo.replace('/', '--')}/snapshots/{COMMIT}"


def test_a_model_from_the_hub(server, tmp_path):
    said = server.run(tmp_path, RESOLVE, "org/llama-3.1-8B", "org/gguf@v1")
    llama = snapshot(tmp_path, "org/llama-3.1-8B")
    assert said == [f"{llama} {COMMIT}", f"{snapshot(tmp_path, 'org/gguf')}/tiny-f16.gguf {COMMIT}"]
    assert server.downloads() == sorted([*LLAMA, "tiny-f16.gguf"])  # each once, and nothing else
    assert hub._below(tmp_path / llama) == sorted(LLAMA)
    # Again: asked which commit it is, and no more. Without the Hub: from the cache, what is there.
    assert server.run(tmp_path, RESOLVE, "org/llama-3.1-8B", "org/llama-3.1-8B@main") == said[:1] * 2
    assert all(path.startswith(("/api/models/org/llama-3.1-8B", "/api/agent")) for _, path in server.requests)
    assert server.start(tmp_path, RESOLVE, "org/llama-3.1-8B").communicate(timeout=60)[1] == ""
    assert not server.downloads()
    said_offline = server.run(tmp_path, RESOLVE, "org/llama-3.1-8B", "org/gguf", f"org/gguf@{COMMIT}", HF_HUB_OFFLINE="1")
    assert said_offline[0] == said[0] and said_offline[2] == said[1] and not server.requests
    assert said_offline[1].startswith("org/gguf: not all of it is in the cache") and "unset it" in said_offline[1]


def test_what_is_not_to_be_had_is_said_in_a_line(server, tmp_path):
    expected = {
        "org/none": "no such path here, no such model on the Hub; check the name, or if private set HF_TOKEN",
        "org/private": "no such path here, no such model on the Hub; check the name, or if private set HF_TOKEN",
        "org/gated": f"gated; accept its terms at {server.url}/org/gated and set HF_TOKEN to a token of that account",
        "org/gguf@v3": "org/gguf has no revision 'v3'; give a branch, a tag or a commit",
        "org/ggufs": "has several GGUF files (a-q4.gguf, a-q8.gguf); download one of them and give its path",
        "org/bin": "has no model.safetensors and no .gguf file; other weights are not read "
        "(it has config.json, pytorch_model.bin)",
    }
    assert server.run(tmp_path, RESOLVE, *expected) == [f"{name}: {line}" for name, line in expected.items()]
    assert not hub._below(tmp_path / "hub/models--org--gated/snapshots")
    (wrong,) = server.run(tmp_path, RESOLVE, "org/gguf", HF_TOKEN="hf_wrong")
    assert wrong.startswith(f"org/gguf: {server.url} answers 401; ") and "HF_TOKEN" in wrong
    right = server.run(tmp_path, RESOLVE, "org/gated", "org/private", HF_TOKEN=TOKEN)
    assert right == [f"{snapshot(tmp_path, repo)} {COMMIT}" for repo in ("org/gated", "org/private")]


def test_status(server, tmp_path):
    status = "from r1jax import hub; print(*hub.status())"
    here = f"cache {tmp_path}/hub"
    assert server.run(tmp_path, status) == [f"True {server.url} answers, no token: public repositories only, {here}"]
    assert server.run(tmp_path, status, HF_TOKEN=TOKEN) == [f"True {server.url} answers, a token is set, {here}"]
    offline = f"True HF_HUB_OFFLINE is set: only what is in the {here}"
    assert server.run(tmp_path, status, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") == [offline]


def test_no_network(server, tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (said,) = server.run(tmp_path, RESOLVE, "org/gguf", HF_ENDPOINT=nowhere)
        assert said.startswith(f"org/gguf: not here, and {nowhere} gives no answer (ConnectError: ")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        (said,) = server.run(tmp_path, RESOLVE, "runs/zzz", HF_ENDPOINT=nowhere)
        assert said.startswith("runs/zzz: no such path, runs/ has no zzz; as a name on the Hub: not here, and ")
        assert said.endswith("; check the network and HF_ENDPOINT")
        (said,) = server.run(tmp_path, "from r1jax import hub; print(*hub.status())", HF_ENDPOINT=nowhere)
        assert said.startswith(f"False {nowhere} does not answer (ConnectError: ")
        server.run(tmp_path, RESOLVE, "org/gguf")
        assert server.run(tmp_path, RESOLVE, "org/gguf", HF_ENDPOINT=nowhere)[0].startswith(snapshot(tmp_path, "org/gguf"))
    # What another program put into the cache, without a list of the repository's files.
    (tmp_path / "hub/models--org--gguf/trees" / f"{COMMIT}.json").unlink()
    assert server.run(tmp_path, RESOLVE, "org/gguf", HF_HUB_OFFLINE="1")[0].startswith(snapshot(tmp_path, "org/gguf"))


def test_one_process_fetches_and_the_others_wait(server, tmp_path):
    server.open.clear()
    first = server.start(tmp_path, RESOLVE, "org/gguf")
    assert first.stderr.readline().startswith("org/gguf: fetching tiny-f16.gguf to ")
    second = server.start(tmp_path, RESOLVE, "org/gguf")
    waiting = second.stderr.readline()
    assert waiting.startswith(f"org/gguf: waiting for process {first.pid} on "), waiting
    server.open.set()
    outs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outs == [f"{snapshot(tmp_path, 'org/gguf')}/tiny-f16.gguf {COMMIT}\n"] * 2
    assert server.downloads() == ["tiny-f16.gguf"]


def test_what_is_here_and_what_can_only_be_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not even imported
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "a.gguf").touch()
    assert str(hub.resolve("org/name")) == "org/name" and hub.resolve(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    assert hub.commit(hub.resolve("a.gguf")) is None
    for name in ("./new", "../org", "/org/model", "~/model", "a/b/c", "org/b.gguf", "org/b.jsonl", "gpt2", "new/", ".a/b"):
        with pytest.raises(ValueError, match="no such file or directory(?: in /.*)?; a name on the Hub is org/name"):
            hub.resolve(name)
    with pytest.raises(ValueError, match="s3://b/m: only gs:// names are fetched"):
        hub.resolve("s3://b/m")


def test_buckets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if not importlib.util.find_spec("gcsfs"):
        with pytest.raises(ValueError, match=r"gs://bucket/m: reading buckets needs gcsfs; pip install 'r1jax\[gs\]'"):
            hub.resolve("gs://bucket/m")
    fsspec.register_implementation("gs", Bucket, clobber=True)
    bucket = fsspec.filesystem("gs")
    Bucket.copied.clear()
    for file, content in (LLAMA | UNWANTED).items():
        bucket.pipe(f"/bucket/m/{file}", content)
    about = ["config.json", "sft/config.json", "sft/model/model.json", "sft/model/tokenizer.json"]
    about += [f"sft/checkpoints/{step}/{file}" for step in (7, 11) for file in ("about.json", "digests-0-of-1")]
    others = ["sft/samples.jsonl", "sft/exports/7/config.json", "sft/checkpoints/.saving-9/about.json"]
    others += ["sft/checkpoints/13/digests-0-of-1"]  # not finished
    others += [f"sft/checkpoints/{step}/state/0" for step in (7, 11)]
    for file in about + others:
        bucket.pipe(f"/bucket/run/{file}", b"{}")

    def below(name):
        folder = hub.resolve(name)
        assert folder.is_relative_to(tmp_path / "r1jax")
        return {f: (folder / f).read_bytes() for f in hub._below(folder)}

    assert below("gs://bucket/m") == below("gs://bucket/m/") == LLAMA
    assert len(Bucket.copied) == len(LLAMA)  # once
    assert set(below("gs://bucket/run")) == set(about)
    assert "copies of other" not in capsys.readouterr().err
    folder = hub.fetch_below("gs://bucket/run", "sft/checkpoints/7")  # and not step 11
    assert hub._below(folder) == [f"sft/checkpoints/7/{file}" for file in ("about.json", "digests-0-of-1", "state/0")]
    with pytest.raises(ValueError, match="gs://bucket/run: has no sft/checkpoints/1 any more; ask for another step"):
        hub.fetch_below("gs://bucket/run", "sft/checkpoints/1")
    capsys.readouterr()
    assert hub.resolve("gs://bucket/m/quantised.gguf").name == "quantised.gguf"
    bucket.pipe("/bucket/m/config.json", b"{'changed'}")
    assert below("gs://bucket/m")["config.json"] == b"{'changed'}"
    assert f"{tmp_path}/r1jax/gs/bucket--m holds copies of other states" in capsys.readouterr().err
    with pytest.raises(ValueError, match="gs://bucket/none: there is nothing"):
        hub.resolve("gs://bucket/none")

    def refuse(*args, **options):
        raise OSError("Forbidden:\n you may not")

    monkeypatch.setattr(Bucket, "find", refuse)
    with pytest.raises(ValueError, match="OSError: Forbidden: you may not; check the name, the network, and the credentials"):
        hub.resolve("gs://bucket/m")
