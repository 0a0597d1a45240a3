"""A stand-in of the Hugging Face Hub on 127.0.0.1: what huggingface_hub asks of it when splip pushes and loads.

Repositories are in memory: commits of files, users by token. Faults can be asked for, as a hub in trouble makes them.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN, READER = "hf_writersecret123", "hf_readersecret456"


class Hub:
    def __init__(self):
        self.repos = {}  # (kind, name): {"private": bool, "commits": [(id, {path: bytes})]}
        self.large = {}
        self.asked = []  # (method, path, token)
        self.fail = None  # (part of a path, how often, status; None: the connection breaks)
        self.url = ""

    def put(self, name, files, kind="model", private=False):
        """Another commit, whose files replace all; returns its id."""
        repo = self.repos.setdefault((kind, name), {"private": private, "commits": []})
        commit = hashlib.sha1(repr((name, len(repo["commits"]), sorted(files))).encode()).hexdigest()
        repo["commits"].append((commit, dict(files)))
        return commit

    def files(self, name, kind="model"):
        return self.repos[(kind, name)]["commits"][-1][1]


KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=b"", headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message):
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def handle_any(self):
        hub, parts = self.hub, urlsplit(self.path)
        path = unquote(parts.path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.body = self.rfile.read(length)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hub.asked.append((self.command, path, token))
        if hub.fail is not None and hub.fail[0] in path and hub.fail[1] > 0:
            hub.fail = (hub.fail[0], hub.fail[1] - 1, hub.fail[2])
            if hub.fail[2] is None:
                self.close_connection = True
                self.connection.close()
                return
            self.answer(hub.fail[2], {"error": "in trouble"})
            return
        if token and token not in (TOKEN, READER) and not path.startswith("/lfs"):
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        self.route(path, token)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def route(self, path, token):
        if path == "/api/whoami-v2":
            self.answer(200, {"type": "user", "name": "owner", "auth": {"accessToken": {"role": "write"}}})
        elif path == "/api/repos/create":
            self.create(token)
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            self.hub.large[path.removeprefix("/lfs/")] = self.body
            self.answer(200)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.batch(match[2])
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            self.of_repo(KINDS[match[1]], match[2], match[3] or "", token)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve("dataset" if match[1] else "model", match[2], match[3], match[4], token)
        else:
            self.refuse(404, "EntryNotFound", f"nothing at {path}")

    def create(self, token):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        kind = asked.get("type") or "model"
        if token != TOKEN:
            self.refuse(
                401 if not token else 403, "", "You don't have the rights to create a model under this namespace"
            )
        elif (kind, name) in self.hub.repos:
            self.answer(409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"})
        else:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.hub.repos[(kind, name)] = {"private": private, "commits": [("0" * 40, {})]}
            prefix = "datasets/" if kind == "dataset" else ""
            self.answer(200, {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": name})

    def batch(self, name):
        asked = json.loads(self.body)
        objects = []
        for one in asked["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit_of(self, kind, name, revision, token):
        """The files of a revision; None after it was refused."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo["private"] and not token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        for commit, files in reversed(repo["commits"]):
            if revision in ("main", commit):
                return commit, files
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def of_repo(self, kind, name, rest, token):
        what, _, revision = rest.partition("/")
        if what == "preupload":
            if token != TOKEN:
                self.refuse(403, "", "Forbidden")
                return
            asked = json.loads(self.body)["files"]
            modes = [{"path": f["path"], "shouldIgnore": False, "uploadMode": self.mode(f["path"])} for f in asked]
            self.answer(200, {"files": modes})
        elif what == "commit":
            self.commit(kind, name, token)
        elif (found := self.commit_of(kind, name, revision.partition("/")[0] or "main", token)) is not None:
            commit, files = found
            entries = [self.entry(path, data) for path, data in sorted(files.items())]
            if what == "tree":
                self.answer(200, entries)
            else:
                siblings = [{"rfilename": path} for path in sorted(files)]
                self.answer(
                    200, {"id": name, "sha": commit, "private": False, "siblings": siblings, "tags": [], "_id": "1"}
                )

    @staticmethod
    def mode(path):
        return "lfs" if path.endswith((".safetensors", ".db", ".f32", ".pack", ".onnx")) else "regular"

    def entry(self, path, data):
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found = {"type": "file", "oid": blob, "size": len(data), "path": path}
        if self.mode(path) == "lfs":
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return found

    def commit(self, kind, name, token):
        if token != TOKEN:
            self.refuse(403, "", "Forbidden")
            return
        files = dict(self.hub.repos[(kind, name)]["commits"][-1][1])
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif one["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = self.hub.put(name, files, kind)
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def resolve(self, kind, name, revision, file, token):
        found = self.commit_of(kind, name, revision, token)
        if found is None:
            return
        commit, files = found
        if file not in files:
            self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data, entry = files[file], self.entry(file, files[file])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if "lfs" in entry:
            headers["X-Linked-ETag"] = f'"{etag}"'
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[int(start[1]) :], headers)
            return
        self.answer(200, data, headers)


@contextmanager
def serving():
    """A hub that answers for as long as the block lasts."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
