"""A stand-in for Google Cloud Storage: the requests by which gcsfs and tensorstore read and write objects."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Storage(dict):
    """"bucket/path" -> bytes, served at ``url``. ``down``: every request is refused. ``written``: each object put, in order."""

    url = ""

    def __init__(self):
        super().__init__()
        self.generations, self.uploads, self.written, self.down, self.lock = {}, {}, [], False, threading.Lock()

    def put(self, name: str, content: bytes, expected: str | None = None) -> bool:
        """Whether it was written: it is not where an ``expected`` generation, 0 for none, is not there."""
        with self.lock:
            if not self.has(name, expected):
                return False
            self[name] = content
            self.generations[name] = len(self.written) + 1
            self.written.append(name)
            return True

    def remove(self, name: str, expected: str | None) -> bool:
        with self.lock:
            return self.has(name, expected) and self.pop(name, None) is not None

    def has(self, name: str, expected: str | None) -> bool:
        return expected is None or expected == (str(self.generations.get(name, 1)) if name in self else "0")

    def about(self, name: str) -> dict:
        bucket, _, path = name.partition("/")
        generation = str(self.generations.get(name, 1))
        found = {"kind": "storage#object", "bucket": bucket, "name": path, "size": str(len(self[name]))}
        when = "2026-01-01T00:00:00.000Z"
        return found | {"generation": generation, "metageneration": "1", "updated": when, "timeCreated": when, "etag": "e"}

    @property
    def environment(self) -> dict[str, str]:
        """With which a process takes this for Google's."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            "FSSPEC_GS": json.dumps({"token": "anon"}),
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask over gRPC what kind of bucket this is
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def answer(self, code: int, body: bytes | dict = b"", **headers: str) -> None:
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self) -> None:
        store = self.storage
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if store.down:
            return self.answer(403, {"error": {"code": 403, "message": "it is down"}})
        match = re.fullmatch(r"(/upload|/download|/resumable)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", url.path)
        if not match:
            return self.answer(404, {"error": {"code": 404, "message": f"no {self.command} {self.path}"}})
        kind, bucket, name = match[1], match[2], unquote(match[3]) if match[3] else None
        if kind == "/upload":
            return self.upload(bucket, query, body)
        if name is None and not url.path.endswith("/o"):
            return self.answer(200, {"kind": "storage#bucket", "name": bucket, "location": "US", "storageClass": "STANDARD"})
        if name is None:
            return self.answer(200, self.listing(bucket, query))
        full = f"{bucket}/{name}"
        if full not in store:
            return self.answer(404, {"error": {"code": 404, "message": f"No such object: {full}"}})
        if self.command == "DELETE":
            if not store.remove(full, query.get("ifGenerationMatch")):
                return self.refuse()
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, store.about(full))
        return self.media(full)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = route

    def media(self, full: str) -> None:
        content, headers = self.storage[full], {"x-goog-generation": str(self.storage.generations.get(full, 1))}
        ranged = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not ranged:
            return self.answer(200, content, **headers)
        size = len(content)
        start = int(ranged[1]) if ranged[1] else max(0, size - int(ranged[2]))
        end = min(int(ranged[2]), size - 1) if ranged[1] and ranged[2] else size - 1
        if start >= size:
            return self.answer(416, b"", Content_Range=f"bytes */{size}")
        return self.answer(206, content[start : end + 1], Content_Range=f"bytes {start}-{end}/{size}", **headers)

    def listing(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, folders = [], set()
        for full in sorted(self.storage):
            of, _, name = full.partition("/")
            if of != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.storage.about(full))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        store, kind = self.storage, query.get("uploadType")
        if kind == "media":
            name, content = query["name"], body
        elif kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            _, about, media = [part.partition(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n")[2] for part in
                               body.split(b"--" + boundary)[:3]]
            name = json.loads(about)["name"]
            content = media[:-2] if media.endswith(b"\r\n") else media[:-1]
        elif "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = str(len(store.uploads))
            store.uploads[key] = (name, b"")
            where = f"{store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return self.answer(200, {}, Location=where)
        else:
            name, before = store.uploads[query["upload_id"]]
            content = before + body
            store.uploads[query["upload_id"]] = (name, content)
            if self.headers.get("Content-Range", "").endswith("/*"):
                return self.answer(308, b"", Range=f"bytes=0-{len(content) - 1}")
        if not store.put(f"{bucket}/{name}", content, query.get("ifGenerationMatch")):
            return self.refuse()
        return self.answer(200, store.about(f"{bucket}/{name}"))

    def refuse(self) -> None:
        self.answer(412, {"error": {"code": 412, "message": "it has another generation"}})

    def log_message(self, *args) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A client that was killed hangs up in the middle, which is no error here."""


@contextlib.contextmanager
def serving():
    """An empty ``Storage``, served on this machine."""
    storage = Storage()
    handler = type("Handler", (_Handler,), {"storage": storage})
    server = _Server(("127.0.0.1", 0), handler)
    storage.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
