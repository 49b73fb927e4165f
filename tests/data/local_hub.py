"""A hub on this machine: as much of Hugging Face's HTTP interface as streaming a dataset needs."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

COMMIT = "0123456789" * 4


def entries(files: dict[str, bytes], folder: str) -> list[dict]:
    """What lies directly in a folder."""
    inside = [name.removeprefix(f"{folder}/") for name in files if not folder or name.startswith(f"{folder}/")]
    prefix = f"{folder}/" if folder else ""
    folders = sorted({prefix + name.partition("/")[0] for name in inside if "/" in name})
    found = [{"type": "directory", "path": name, "size": 0, "oid": COMMIT} for name in folders]
    for name in inside:
        if "/" not in name:
            raw = files[prefix + name]
            oid = hashlib.sha1(raw).hexdigest()
            found.append({"type": "file", "path": prefix + name, "size": len(raw), "oid": oid})
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` as the dataset own/corpus; drops the connection while ``server.drops`` is above 0."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        api, resolve = "/api/datasets/own/corpus", "/datasets/own/corpus/resolve/"
        if re.fullmatch(rf"{api}(/revision/(main|{COMMIT}))?", path):
            self.json({"id": "own/corpus", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self.json(entries(files, path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")))
        elif path.startswith(resolve) and (name := path.removeprefix(resolve).partition("/")[2]) in files:
            self.file(files[name])
        else:
            self.answer(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def json(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def file(self, raw: bytes) -> None:
        about = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not (asked := self.headers.get("Range")):
            self.answer(200, raw, about)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        end = min(len(raw), int(last) + 1 if last else len(raw))
        self.server.ranges.append((int(first), end))
        if self.server.drops and end - int(first) > 1 << 16:  # not a footer
            self.server.drops -= 1
            self.close_connection = True
            return
        self.answer(206, raw[int(first) : end], about | {"Content-Range": f"bytes {first}-{end - 1}/{len(raw)}"})


@contextlib.contextmanager
def hub(files: dict[str, Path]) -> Iterator[http.server.ThreadingHTTPServer]:
    """The server, under way; ``ranges`` are the parts of files that were asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {name: path.read_bytes() for name, path in files.items()}
        server.drops, server.ranges = 0, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
