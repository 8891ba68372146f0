"""A server of one file on this machine, which fails as told and notes what it is asked for."""

import hashlib
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.RandomState(0).bytes(3_000_000)
OTHER = np.random.RandomState(1).bytes(len(CONTENT))
PATH = "/file.bin"


def md5(content):
    return hashlib.md5(content).hexdigest()


class RangeServer(ThreadingHTTPServer):
    """Attributes that tests change.

    content: of the file.
    ranges: whether parts of it can be asked for.
    tag, date: what tells its versions apart.
    drops: after how many bytes the next answers end, one after the other; then they are complete.
    statuses: with which the next answers refuse.
    length: whether the file's size is told.
    conditions: whether If-Range is understood.
    halt: called when an answer is about to be cut short.
    redirect: to another path first.
    asked: what was asked for, (Range, If-Range) of each request.
    sent: bytes of content in all.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.length, self.conditions, self.redirect = CONTENT, True, True, True, False
        self.tag, self.date = '"1"', "Mon, 05 Jan 2026 00:00:00 GMT"
        self.drops, self.statuses, self.asked, self.sent = [], [], [], 0
        self.halt = lambda: None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}{PATH}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        if server.redirect and self.path == PATH:
            self.answer(303, {"Location": "/signed?once=1", "Content-Length": 0})
            return
        server.asked.append((self.headers["Range"], self.headers["If-Range"]))
        assert self.headers["Accept-Encoding"] == "identity"
        if server.statuses:
            self.answer(server.statuses.pop(0), {"Content-Length": 0})
            return
        start = self.start()
        if start is not None and start >= len(server.content):
            self.answer(416, {"Content-Range": f"bytes */{len(server.content)}", "Content-Length": 0})
            return
        headers = {"ETag": server.tag, "Last-Modified": server.date}
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
        content = server.content[start or 0 :]
        if server.length:
            headers["Content-Length"] = len(content)
        self.answer(200 if start is None else 206, headers)
        self.send(content)

    def start(self):
        """The first byte that is asked for; None for the whole file."""
        server, asked, condition = self.server, self.headers["Range"], self.headers["If-Range"]
        if not server.ranges or asked is None:
            return None
        if server.conditions and condition is not None and condition not in (server.tag, server.date):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.send_header("Connection", "close")  # and so it is: http.server ends the connection by this
        self.end_headers()

    def send(self, content):
        cut = bool(self.server.drops)
        content = content[: self.server.drops.pop(0)] if cut else content
        self.wfile.write(content)
        self.wfile.flush()
        self.server.sent += len(content)
        if cut:
            self.server.halt()

    def log_message(self, message, *args):
        pass


@contextmanager
def range_server():
    with RangeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def press_ctrl_c(part, size):
    """Interrupt the main thread once so many bytes have come."""
    while not part.exists() or part.stat().st_size < size:
        time.sleep(0.001)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
