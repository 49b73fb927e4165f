"""A W&B server on this machine, as far as the mirror needs one: runs, their history, files and artifacts, and its moods.

The real package speaks to it. Its moods: accept, deny (no such entity), refuse (wrong key), hang, garbage, down.
"""

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """What the server has been told. ``runs`` are by id, ``requests`` are the names of all queries and paths."""

    def __init__(self):
        self.mood = "accept"
        self.moods_after: dict[str, str] = {}  # after which query the mood becomes which
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.turned_away = 0  # requests that met another mood than accept
        self.lock = threading.RLock()
        self.released = threading.Event()

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run, in order."""
        return [json.loads(line) for line in self.runs[run_id]["wandb-history.jsonl"]]

    def config(self, run_id: str) -> dict[str, Any]:
        """The nested config of a run."""
        return {key: held["value"] for key, held in json.loads(self.runs[run_id]["config"]).items() if key != "_wandb"}

    def summary(self, run_id: str) -> dict[str, Any]:
        """The last summary of a run."""
        lines = self.runs[run_id].get("wandb-summary.json")
        return json.loads(lines[-1]) if lines else {}

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a query."""
        name = query.split("(")[0].split("{")[0].split()[-1]
        self.requests.append(name)
        answer = getattr(self, f"answer_{name}", None)
        return answer(given) if answer else {}

    def answer_Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "VXNlcjox",
                "entity": "somebody",
                "username": "somebody",
                "email": None,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    answer_GetDefaultEntity = answer_Viewer

    def answer_ServerFeaturesQuery(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def answer_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": given.get("entity")}}
        if run is None:
            return {"model": project | {"bucket": None}}
        history, events = run.get("wandb-history.jsonl", []), run.get("wandb-events.jsonl", [])
        bucket = {
            "id": given["name"],
            "name": given["name"],
            "summaryMetrics": run.get("wandb-summary.json", ["{}"])[-1],
            "displayName": run["displayName"],
            "logLineCount": len(run.get("output.log", [])),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "config": run["config"] or "{}",
            "tags": run["tags"] or [],
            "notes": run["notes"],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": project | {"bucket": bucket}}

    def answer_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"] or given["id"]
        is_new = name not in self.runs
        run = self.runs.setdefault(name, {"config": "{}", "tags": [], "notes": None, "displayName": None, "starts": 0})
        run["starts"] += given.get("state") == "running" or is_new
        run |= {key: value for key, value in given.items() if value is not None}
        project = {"id": "p", "name": run["project"], "entity": {"id": "e", "name": run.get("entity") or "somebody"}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run["displayName"],
            "description": None,
            "config": run["config"],
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.get("wandb-history.jsonl", [])),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def answer_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def answer_ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def answer_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given["input"]
        same = [
            a for a in self.artifacts if (a["name"], a["digest"]) == (given["artifactCollectionName"], given["digest"])
        ]
        if not same:
            number = len(self.artifacts)
            self.artifacts.append(
                {"id": f"a{number}", "name": given["artifactCollectionName"], "type": given["artifactTypeName"]}
                | {"digest": given["digest"], "aliases": [], "files": [], "state": "PENDING"}
            )
            same = self.artifacts[-1:]
        artifact = same[0]
        artifact["aliases"] = [*artifact["aliases"], *(alias["alias"] for alias in given.get("aliases") or [])]
        artifact["run"], artifact["metadata"] = given.get("runName"), given.get("metadata")
        latest = {"id": artifact["id"], "versionIndex": 0}
        sequence = {"id": artifact["name"], "latestArtifact": latest}
        return {
            "createArtifact": {
                "artifact": {"id": artifact["id"], "state": artifact["state"], "artifactSequence": sequence}
            }
        }

    def answer_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/upload/manifest/{given['artifactID']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    def answer_UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/upload/manifest/{given['artifactManifestID']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": file}}}

    def answer_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in given["input"]["artifactFiles"]:
            next(a for a in self.artifacts if a["id"] == spec["artifactID"])["files"].append(spec["name"])
            url = f"{self.url}/upload/{spec['artifactID']}/{spec['name']}"
            node = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": spec["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def answer_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = next(a for a in self.artifacts if a["id"] == given["artifactID"])
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}

    def answer_UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append(given | {"spec": json.loads(given["spec"])})
        return {"upsertView": {"view": {"id": "Vmlldzox", "name": given["name"]}, "inserted": True}}

    def stream(self, run_id: str, sent: dict[str, Any]) -> None:
        """Take lines of a run's files: each chunk says at which line it begins."""
        run = self.runs[run_id]
        for name, chunk in (sent.get("files") or {}).items():
            lines = run.setdefault(name, [])
            if name == "wandb-summary.json":
                lines[:] = chunk["content"]
            else:
                offset = chunk.get("offset", 0)
                lines[offset : offset + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            run["exitcode"] = sent.get("exitcode")


@contextlib.contextmanager
def serving():
    """A server that listens, at its ``url``, until the end of the block."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # who asked may be killed
                super().handle()

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                raw = b""
                while size := int(self.rfile.readline(), 16):
                    raw += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def handle_one(self) -> None:
            body, mood = self.body(), server.mood
            server.turned_away += mood != "accept"
            if mood == "hang":
                server.released.wait()
            if mood in ("down", "hang"):
                self.close_connection = True
            elif mood == "garbage":
                self.answer(200, b"\x00<html>nothing of the kind</html>")
            elif mood == "refuse":
                self.answer(401, b'{"errors": [{"message": "invalid API key"}]}')
            else:
                with server.lock:
                    self.accept(body, mood)

        def accept(self, body: bytes, mood: str) -> None:
            path = unquote(self.path)
            if path.endswith("/graphql"):
                sent = json.loads(body)
                if mood == "deny" and "upsertBucket" in sent["query"]:
                    problem = {"message": "permission denied", "path": ["upsertBucket"]}
                    return self.answer(403, json.dumps({"errors": [problem], "data": None}).encode())
                data = server.graphql(sent["query"], sent.get("variables") or {})
                server.mood = server.moods_after.get(server.requests[-1], server.mood)
                return self.answer(200, json.dumps({"data": data}).encode())
            server.requests.append(path)
            if path.endswith("/file_stream"):
                server.stream(path.split("/")[-2], json.loads(body))
                return self.answer(200, b'{"exitcode": null, "limits": {}}')
            if "/upload/" in path:
                server.uploads[path.partition("/upload/")[2]] = body
            return self.answer(200, b"{}")

        do_POST = do_PUT = do_GET = handle_one

    class Http(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # the package uploads many files at once

    http = Http(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()


def serve() -> None:
    """Serve until this process is ended; says its address and key on stdout."""
    with serving() as server:
        print(server.url, KEY, flush=True)
        threading.Event().wait()
