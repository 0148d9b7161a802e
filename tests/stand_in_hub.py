"""A hub on this machine: what push_to_hub and from_hub ask of the real one, answered from memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

ID = "0" * 40  # as long as a commit's


class Hub(http.server.ThreadingHTTPServer):
    """Holds one repository's files.

    Attributes:
        files: {path: bytes}.
        commits: messages.
        repository: "owner/name"; "" until it is made.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.repository = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, lines: list[dict]) -> None:
        """Does what the lines of a commit say."""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
            else:
                raise ValueError(line["key"])


class Answers(http.server.BaseHTTPRequestHandler):
    """The answers of a `Hub`."""

    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        repository = self.server.repository or "none"
        if path.startswith(f"/api/models/{repository}/tree/"):
            self.answer([self.entry(name) for name in self.server.files])
        elif path.startswith(f"/api/models/{repository}"):
            self.answer({"id": repository, "sha": ID, "siblings": []})
        elif path.startswith(f"/{repository}/resolve/"):
            self.send(self.server.files[path.split("/", 5)[5]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.repository = f"{asked['organization']}/{asked['name']}"
            self.answer({"url": f"{self.server.address}/{self.server.repository}"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(body)["files"]]
            self.answer(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        elif "/commit/" in self.path:
            self.server.commit([json.loads(line) for line in body.splitlines()])
            where = f"{self.server.address}/{self.server.repository}/commit/{ID}"
            self.answer({"success": True, "commitOid": ID, "commitUrl": where})

    def entry(self, name: str) -> dict:
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer(self, values) -> None:
        self.send(json.dumps(values).encode())

    def send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", ID)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Gives a hub that answers while its block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
