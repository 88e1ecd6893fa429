"""A stand-in for Google Cloud Storage on loopback: buckets in memory, by the calls that are used.

The JSON API as gcsfs, TensorStore and Google's own client speak it: https, credentials, access
lists and versions are left out; conditions on generations are kept, since locks live on them.
"""

import base64
import dataclasses
import hashlib
import http.server
import itertools
import json
import re
import socket
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)(/o)?/?$")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o$")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$")
_REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$")


@dataclasses.dataclass(frozen=True)
class Object:
    """What is stored under a name."""

    content: bytes
    generation: int
    metageneration: int = 1
    metadata: dict = dataclasses.field(default_factory=dict)
    updated: str = ""


class Refused(Exception):
    """A status other than 200, with the reason that the answer gives."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class BucketServer(http.server.ThreadingHTTPServer):
    """Serves `buckets`, {name: {object's name: Object}}, at `url`.

    Attributes:
        closed: buckets that answer 403.
        gone: whether every connection is dropped without an answer.
        asked: (method, path) of every request so far.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *names: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in names}
        self.closed: set[str] = set()
        self.gone = False
        self.asked: list[tuple[str, str]] = []
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.guard = threading.RLock()
        self._numbers = itertools.count(time.time_ns() // 1000)

    def number(self) -> int:
        return next(self._numbers)

    def put(self, bucket: str, name: str, content: bytes, query: dict, metadata=None) -> dict:
        with self.guard:
            self.check(bucket, name, query)
            new = Object(bytes(content), self.number(), 1, metadata or {}, _now())
            self.buckets[bucket][name] = new
            return described(bucket, name, new)

    def check(self, bucket: str, name: str, query: dict) -> Object | None:
        """The object, or None; Refused where a condition of the query does not hold."""
        found = self.buckets[bucket].get(name)
        for condition, value in (
            ("ifGenerationMatch", found.generation if found else 0),
            ("ifMetagenerationMatch", found.metageneration if found else 0),
        ):
            if condition in query and int(query[condition]) != value:
                raise Refused(412, f"{condition} does not hold")
        return found

    def handle_error(self, request, client_address):
        pass  # clients that are killed, or hang up, are part of the tests


def described(bucket: str, name: str, found: Object) -> dict:
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(found.content)),
        "generation": str(found.generation), "metageneration": str(found.metageneration),
        "metadata": found.metadata, "updated": found.updated, "timeCreated": found.updated,
        "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(),
        "contentType": "application/octet-stream", "etag": str(found.generation),
    }  # fmt: skip


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        server.asked.append((self.command, unquote(url.path)))
        if server.gone:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            status, headers, content = self._handled(url.path, query, body)
        except Refused as error:
            problem = {"code": error.status, "message": str(error)}
            status, headers, content = error.status, {}, json.dumps({"error": problem}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def _handled(self, path, query, body):
        if path.startswith("/resumable/"):
            return self._resumed(path.rpartition("/")[2], body)
        for pattern, handle in (
            (_UPLOAD, self._upload),
            (_REWRITE, self._rewrite),
            (_MOVE, self._move),
            (_OBJECT, self._object),
            (_BUCKET, self._bucket),
        ):
            if match := pattern.match(path):
                names = [unquote(name) if name else name for name in match.groups()]
                if names[0] in self.server.closed:
                    raise Refused(403, "the caller does not have storage.objects access")
                if names[0] not in self.server.buckets:
                    raise Refused(404, "The specified bucket does not exist.")
                return handle(names, query, body)
        raise Refused(501, f"{self.command} {path} is not stood in for")

    def _bucket(self, names, query, body):
        bucket, objects = names
        if not objects:
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket})
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        most, after = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        items, prefixes, last = [], [], None
        with self.server.guard:
            known = sorted(self.server.buckets[bucket].items())
        for name, found in known:
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if name >= query.get("endOffset", "\U0010ffff"):
                continue
            folder, end, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("",) * 3
            entry = prefix + folder + end if end else name
            if entry <= after or entry in prefixes:
                continue
            if len(items) + len(prefixes) == most:
                return _json({"items": items, "prefixes": prefixes, "nextPageToken": last})
            last = entry
            if end:
                prefixes.append(entry)
            else:
                items.append(described(bucket, name, found))
        return _json({"items": items, "prefixes": prefixes})

    def _object(self, names, query, body):
        bucket, name = names
        with self.server.guard:
            found = self.server.check(bucket, name, query)
            if found is None:
                raise Refused(404, f"No such object: {bucket}/{name}")
            if self.command == "DELETE":
                del self.server.buckets[bucket][name]
                return 204, {}, b""
            if self.command == "PATCH":
                metadata = found.metadata | json.loads(body).get("metadata", {})
                found = dataclasses.replace(
                    found, metadata=metadata, metageneration=found.metageneration + 1
                )
                self.server.buckets[bucket][name] = found
        if query.get("alt") != "media":
            return _json(described(bucket, name, found))
        if query.get("ifGenerationNotMatch") == str(found.generation):
            return 304, {}, b""
        generation = {"x-goog-generation": str(found.generation)}
        if asked := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            return self._range(found.content, asked, generation)
        return 200, generation, found.content

    @staticmethod
    def _range(content, asked, headers):
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            raise Refused(416, "the range is beyond the end")
        headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        return 206, headers, content[start:end]

    def _upload(self, names, query, body):
        server, bucket, kind = self.server, names[0], query["uploadType"]
        if kind == "media":
            return _json(server.put(bucket, query["name"], body, query))
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)[1:3]
            first, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            fields = json.loads(first)
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            return _json(server.put(bucket, fields["name"], content, query, fields.get("metadata")))
        name = query.get("name") or json.loads(body)["name"]
        number = str(server.number())
        server.uploads[number] = bucket, name, query, bytearray()
        return 200, {"Location": f"{server.url}/resumable/{number}"}, b"{}"

    def _resumed(self, number, body):
        if self.command == "DELETE":
            del self.server.uploads[number]
            return 204, {}, b""
        bucket, name, query, received = self.server.uploads[number]
        received += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(received) < int(total):
            return 308, {"Range": f"bytes=0-{len(received) - 1}"}, b""
        return _json(self.server.put(bucket, name, received, query))

    def _rewrite(self, names, query, body):
        bucket, name, to_bucket, to_name = names
        with self.server.guard:
            found = self.server.check(bucket, name, {})
            if found is None:
                raise Refused(404, f"No such object: {bucket}/{name}")
            new = self.server.put(to_bucket, to_name, found.content, query, found.metadata)
        size = new["size"]
        return _json(
            {"done": True, "resource": new, "objectSize": size, "totalBytesRewritten": size}
        )

    def _move(self, names, query, body):
        bucket, name, to_name = names
        with self.server.guard:
            answer = self._rewrite((bucket, name, bucket, to_name), query, body)
            del self.server.buckets[bucket][name]
        return _json(json.loads(answer[2])["resource"])


def _json(fields):
    return 200, {"Content-Type": "application/json"}, json.dumps(fields).encode()


def flip(server: BucketServer, name: str) -> None:
    """Flips a bit in the middle of an object of the bucket "bucket"."""
    found = server.buckets["bucket"][name]
    content = bytearray(found.content)
    content[len(content) // 2] ^= 1
    server.buckets["bucket"][name] = dataclasses.replace(found, content=bytes(content))
