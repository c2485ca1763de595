"""A stand-in for the Hub: the endpoints that huggingface_hub reads repositories through, served from dictionaries. And one for
buckets."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fsspec.implementations.memory import MemoryFileSystem

COMMIT = "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_right"
ROOT = str(Path(__file__).parent.parent)


class Bucket(MemoryFileSystem):
    """A stand-in for gcsfs. ``copied``: each file it gave."""

    protocol, store, pseudo_dirs, copied = "gs", {}, [""], []

    def get_file(self, rpath, lpath, **options):
        self.copied.append(rpath)
        super().get_file(rpath, lpath, **options)


class Hub:
    """``repos``: "org/name" or "datasets/org/name" -> {path: bytes}, at the revisions main and v1. ``gated``: those whose files
    are given for ``TOKEN`` only, ``private``: those that do not exist without it. Files come while ``open`` is set."""

    def __init__(self, url):
        self.url, self.repos, self.gated, self.private = url, {}, set(), set()
        self.requests = []  # (method, path) as they came
        self.open = threading.Event()
        self.open.set()

    def downloads(self):
        """The files given since the last call."""
        given = [path for method, path in self.requests if method == "GET" and "/resolve/" in path]
        self.requests.clear()
        return sorted(path.split(f"/resolve/{COMMIT}/")[1] for path in given)

    def start(self, home, program, *args, **environment):
        """Starts a Python program whose Hub this is, with its cache in ``home``."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env = {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "PYTHONPATH": ROOT, **environment}
        command = [sys.executable, "-c", program, *args]
        return subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, home, program, *args, **environment):
        """The lines that it printed."""
        out, err = self.start(home, program, *args, **environment).communicate(timeout=120)
        assert "Traceback" not in err, err
        return out.splitlines()


@contextlib.contextmanager
def serve():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if self.command == "GET" and "/resolve/" in path:
                hub.open.wait(60)
            status, headers, body = answer(hub, path, self.headers.get("authorization"))
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def answer(hub, path, authorization):
    """(status, headers, body) as the Hub gives them."""
    if path in ("/", "/api/agent-harnesses"):
        return 200, {}, b"{}"
    if authorization not in (None, f"Bearer {TOKEN}"):
        return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
    match = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
    if match:
        kind, repo, what, revision = match.groups()
        name = f"datasets/{repo}" if kind == "datasets" else repo
    else:
        name, revision, file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
    if name not in hub.repos or (name in hub.private and not authorization):
        return 404 if authorization else 401, {"X-Error-Code": "RepoNotFound"}, b""
    if revision not in (None, "main", "v1", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    files = hub.repos[name]
    if not match:
        if name in hub.gated and not authorization:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        digest = hashlib.sha1(files[file]).hexdigest()
        return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, files[file]
    if what == "tree":
        found = [
            {"type": "file", "path": f, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for f, c in sorted(files.items())
        ]
    else:
        found = {"id": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": []}
    return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
