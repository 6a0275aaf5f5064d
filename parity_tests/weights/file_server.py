"""A server on this machine that speaks as the Hugging Face hub and as a host of files, with faults as chosen."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass
class Files:
    """What is served, what goes wrong, and what was asked."""

    content: dict[str, bytes] = field(default_factory=dict)  # by path, such as "/a.npz"
    headers: dict[str, str] = field(default_factory=dict)  # of every file
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # "OWNER/NAME": name: content
    cuts: list[int] = field(default_factory=list)  # after how many bytes each of the next answers breaks off
    has_etag: bool = True
    statuses: list[int] = field(default_factory=list)  # of the next answers
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def commit(self, repository: str) -> str:
        names = "".join(name + etag(data) for name, data in sorted(self.repositories[repository].items()))
        return hashlib.sha1(names.encode()).hexdigest()


def etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


@contextlib.contextmanager
def serve_files(files: Files):
    """Serves them over HTTP on a free port of this machine; sets their url."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = unquote(urlsplit(self.path).path)
            files.requests.append((self.command, path, self.headers.get("Range", "")))
            if files.statuses:
                self.send(files.statuses.pop(0), b"", {})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+)|/tree/([^/]+))?", path):
                self.repository(match[1], match[3] or match[4] or "main", bool(match[4]))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                commit = files.commit(match[1])
                data = files.repositories[match[1]].get(match[3])
                self.send_file(data, {"X-Repo-Commit": commit})
            else:
                self.send_file(files.content.get(path), {})

        def repository(self, name: str, revision: str, is_tree: bool):
            if name not in files.repositories:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = files.commit(name)
            if revision not in ("main", commit):
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            served = files.repositories[name]
            if is_tree:
                answer = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in served.items()
                ]
            else:
                answer = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in served]}
            self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def send_file(self, data: bytes | None, headers: dict[str, str]):
            if data is None:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", **headers})
            headers = {"Accept-Ranges": "bytes", **headers, **files.headers}
            if files.has_etag:
                headers["ETag"] = etag(data)
            if files.has_etag and self.headers.get("If-None-Match") == etag(data):
                return self.send(304, b"", headers)
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if match and self.headers.get("If-Range", etag(data)) == etag(data):
                begin = int(match[1])
                if begin >= len(data):
                    return self.send(416, b"", headers)
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                return self.send(206, data[begin:], headers)
            self.send(200, data, headers)

        def send(self, status: int, data: bytes, headers: dict[str, str]):
            self.send_response(status)
            for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if files.cuts and status in (200, 206) and len(data) > files.cuts[0]:
                self.wfile.write(data[: files.cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
