"""A small S3 server on loopback that is odd in named ways, as servers of other makers are."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import re
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate
from enum import StrEnum
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class Oddity(StrEnum):
    """One way in which a server differs from AWS's."""

    CONDITION_501 = "answers 501 to If-None-Match"
    CONDITION_400 = "answers 400 to If-None-Match"
    CONDITION_IGNORED = "ignores If-None-Match"
    CONDITION_SPOILS_SIGNATURE = "loses If-None-Match on the way, which spoils the signature"
    EXISTS_409 = "answers 409 where an object exists"
    EXISTS_304 = "answers 304 where an object exists"
    CONFLICT_ONCE = "answers 409 to the first condition, for another request is at it"
    ALWAYS_409 = "answers 409 to every condition"
    ALWAYS_412 = "answers 412 to every condition"
    PUT_IS_UNANSWERED = "puts the object and breaks off before it answers, once"
    DELETE_WANTS_MD5 = "wants Content-MD5 where many objects are deleted"
    NO_MULTI_DELETE = "answers 501 where many objects are deleted"
    NO_MULTI_DELETE_405 = "answers 405 where many objects are deleted"
    NO_CHECKSUMS = "answers 501 to checksums and to trailers"
    CHECKSUMS_400 = "answers 400 to checksums and to trailers"
    NO_LIST_V2 = "answers 501 to lists of the second version"
    LIST_V1 = "gives lists of the first version, whatever is asked for"
    LIST_NOT_ENCODED = "lists keys as they are, though asked to encode them"
    LIST_ENCODED_UNSAID = "encodes keys and does not say so"
    LIST_WITHOUT_PREFIX = "lists everything, whatever the prefix"
    NO_PARTS = "answers 501 to uploads in parts"
    PARTS_WITHOUT_ETAG = "gives parts no ETag"
    COMPLETE_200 = "tells an error with status 200 where an upload is completed, once"
    NO_RANGES = "answers with the whole object where a range is asked for"
    RANGES_501 = "answers 501 where a range is asked for"
    ETAG_CHANGES = "gives each answer another ETag"
    ETAG_WEAK = "gives weak ETags"
    NO_ETAG = "gives no ETags"
    MISSING_WITHOUT_BODY = "answers 404 without a body where an object is missing"
    MISSING_IN_HTML = "answers 404 with a page for people where an object is missing"
    SLOW_DOWN = "answers 503 to the first request of each kind"


class OddBucket(http.server.ThreadingHTTPServer):
    """Objects in memory, of all buckets that are asked for but ``nowhere``."""

    daemon_threads = True

    def __init__(self, *oddities: Oddity, page: int = 3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.oddities = set(oddities)
        self.page = page
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.seen: Counter[str] = Counter()
        """How often what was asked for."""
        self.etags = itertools.count()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        """Be as new."""
        self.objects.clear()
        self.uploads.clear()
        self.seen.clear()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()


_UNKNOWN = "A header or query you provided implies functionality that is not implemented."


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddBucket

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815 - as the standard library wants them

    def _is(self, oddity: Oddity) -> bool:
        return oddity in self.server.oddities

    def _is_first(self, word: str) -> bool:
        self.server.seen[word] += 1
        return self.server.seen[word] == 1

    def _say(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        sentence = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message or code}</Message></Error>"
        self._say(status, sentence.encode(), {"Content-Type": "application/xml"})

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        body = self._read_body()
        words = [name for name in ("delete", "uploads", "uploadId", "list-type") if name in query]
        kind = " ".join([self.command, "object" if key else "bucket", *words])
        is_first = self._is_first(kind)
        checksums = ("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")
        has_checksum = any(name.lower().startswith(checksums) for name in self.headers)
        if bucket == "nowhere":
            self._refuse(404, "NoSuchBucket")
        elif self._is(Oddity.SLOW_DOWN) and is_first:
            self._refuse(503, "SlowDown")
        elif has_checksum and self._is(Oddity.NO_CHECKSUMS):
            self._refuse(501, "NotImplemented", _UNKNOWN)
        elif has_checksum and self._is(Oddity.CHECKSUMS_400):
            self._refuse(400, "InvalidRequest", "unknown header")
        elif kind.startswith("GET bucket"):
            self._list(query)
        elif "delete" in query:
            self._delete_many(body)
        elif "uploads" in query or "uploadId" in query:
            self._take_parts(key, query, body, is_first=is_first)
        elif self.command == "PUT":
            self._put(key, body)
        elif self.command == "DELETE":
            self.server.objects.pop(key, None)
            self._say(204)
        else:
            self._get(key)

    def _etag_of(self, data: bytes) -> dict[str, str]:
        if self._is(Oddity.NO_ETAG):
            return {}
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if self._is(Oddity.ETAG_CHANGES):
            etag = f'"{next(self.server.etags)}"'
        return {"ETag": f"W/{etag}" if self._is(Oddity.ETAG_WEAK) else etag}

    def _put(self, key: str, body: bytes) -> None:
        objects, exists = self.server.objects, key in self.server.objects
        if self.headers.get("If-None-Match"):
            refusals = {
                Oddity.CONDITION_501: (501, "NotImplemented"),
                Oddity.CONDITION_400: (400, "InvalidArgument"),
                Oddity.CONDITION_SPOILS_SIGNATURE: (403, "SignatureDoesNotMatch"),
                Oddity.ALWAYS_409: (409, "OperationAborted"),
                Oddity.ALWAYS_412: (412, "PreconditionFailed"),
            }
            for oddity, (status, code) in refusals.items():
                if self._is(oddity):
                    return self._refuse(status, code, _UNKNOWN)
            if self._is(Oddity.CONFLICT_ONCE) and self._is_first("condition"):
                return self._refuse(409, "ConditionalRequestConflict")
            if exists and self._is(Oddity.EXISTS_409):
                return self._refuse(409, "ObjectAlreadyExists")
            if exists and self._is(Oddity.EXISTS_304):
                return self._say(304)
            if exists and not self._is(Oddity.CONDITION_IGNORED):
                return self._refuse(412, "PreconditionFailed")
        objects[key] = body
        if self._is(Oddity.PUT_IS_UNANSWERED) and self._is_first("unanswered"):
            self.close_connection = True
            return None
        return self._say(200, headers=self._etag_of(body))

    def _get(self, key: str) -> None:
        if key not in self.server.objects:
            if self.command == "HEAD" or self._is(Oddity.MISSING_WITHOUT_BODY):
                return self._say(404)
            if self._is(Oddity.MISSING_IN_HTML):
                return self._say(404, b"<html><body>Not Found<br></body></html>", {"Content-Type": "text/html"})
            return self._refuse(404, "NoSuchKey")
        data = self.server.objects[key]
        headers = {**self._etag_of(data), "Last-Modified": formatdate(usegmt=True)}
        if self.headers.get("If-Match") not in (None, headers.get("ETag")):
            return self._refuse(412, "PreconditionFailed")
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None or self._is(Oddity.NO_RANGES):
            return self._say(200, data, headers)
        if self._is(Oddity.RANGES_501):
            return self._refuse(501, "NotImplemented", _UNKNOWN)
        first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self._refuse(416, "InvalidRange")
        return self._say(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _list(self, query: Mapping[str, str]) -> None:
        is_second = "list-type" in query
        if is_second and self._is(Oddity.NO_LIST_V2):
            return self._refuse(501, "NotImplemented", _UNKNOWN)
        if self._is(Oddity.LIST_V1):
            is_second = False
        after = query.get("continuation-token" if is_second else "marker", "")
        prefix = "" if self._is(Oddity.LIST_WITHOUT_PREFIX) else query.get("prefix", "")
        keys = sorted(key for key in self.server.objects if key.startswith(prefix) and key > after)
        most = min(int(query.get("max-keys") or 1000), self.server.page)
        page, is_cut = keys[:most], len(keys) > most
        asks_for_encoding = query.get("encoding-type") == "url" and not self._is(Oddity.LIST_NOT_ENCODED)
        encode = (lambda text: quote_plus(text, safe="/")) if asks_for_encoding else escape
        parts = [f"<Prefix>{encode(prefix)}</Prefix><IsTruncated>{str(is_cut).lower()}</IsTruncated>"]
        if asks_for_encoding and not self._is(Oddity.LIST_ENCODED_UNSAID):
            parts.append("<EncodingType>url</EncodingType>")
        if is_cut and is_second:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        parts += [f"<Contents><Key>{encode(key)}</Key><Size>1</Size></Contents>" for key in page]
        self._say(200, f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode())
        return None

    def _delete_many(self, body: bytes) -> None:
        if self._is(Oddity.NO_MULTI_DELETE):
            return self._refuse(501, "NotImplemented", _UNKNOWN)
        if self._is(Oddity.NO_MULTI_DELETE_405):
            return self._refuse(405, "MethodNotAllowed")
        if self._is(Oddity.DELETE_WANTS_MD5) and not self.headers.get("Content-MD5"):
            return self._refuse(400, "MissingContentMD5", "Missing required header for this request: Content-MD5.")
        for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            self.server.objects.pop(unescape(key, {"&quot;": '"', "&apos;": "'"}), None)
        return self._say(200, b"<DeleteResult></DeleteResult>")

    def _take_parts(self, key: str, query: Mapping[str, str], body: bytes, *, is_first: bool) -> None:
        uploads, name = self.server.uploads, query.get("uploadId", "")
        if self._is(Oddity.NO_PARTS):
            return self._refuse(501, "NotImplemented", _UNKNOWN)
        if "uploads" in query:
            name = uuid.uuid4().hex
            uploads[name] = {}
            message = f"<Key>{quote(key)}</Key><UploadId>{name}</UploadId>"
            return self._say(200, f"<InitiateMultipartUploadResult>{message}</InitiateMultipartUploadResult>".encode())
        if self.command == "PUT":
            uploads[name][int(query["partNumber"])] = body
            return self._say(200, headers={} if self._is(Oddity.PARTS_WITHOUT_ETAG) else self._etag_of(body))
        if self.command == "DELETE":
            uploads.pop(name, None)
            return self._say(204)
        if self._is(Oddity.COMPLETE_200) and is_first:
            return self._refuse(200, "InternalError", "We encountered an internal error. Please try again.")
        self.server.objects[key] = b"".join(data for _, data in sorted(uploads.pop(name).items()))
        return self._say(200, b"<CompleteMultipartUploadResult><ETag>m</ETag></CompleteMultipartUploadResult>")
