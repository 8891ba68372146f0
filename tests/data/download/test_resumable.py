"""Downloads from a server on this machine that drops connections, changes its file and more."""

import io
import os
import shutil
import signal
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest

from lightning_farms.data.download import resumable
from lightning_farms.data.download.resumable import fetch_file
from tests.data.download.range_server import CONTENT, OTHER, md5, press_ctrl_c, range_server
from tests.forked import run_forked

CHUNK = resumable._CHUNK
HALF = 11 * CHUNK + 5


@pytest.fixture
def server():
    with range_server() as running:
        yield running


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Attempts follow each other at once; how long would be waited is noted."""
    waited = []
    monkeypatch.setattr(resumable, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def target(tmp_path):
    return tmp_path / "sets" / "file.bin"


def fetch(server, target, content=CONTENT, **settings):
    return fetch_file(server.url, target, md5=md5(content), **settings)


def files(target):
    return sorted(path.name for path in target.parent.iterdir())


def starts(server):
    return [0 if asked is None else int(asked[6:-1]) for asked, _ in server.asked]


def assert_complete(target, content=CONTENT):
    assert target.read_bytes() == content
    assert files(target) == ["file.bin"]


def interrupt(server, target, after=HALF):
    """A download that a server's refusal ends after some bytes."""
    server.drops, server.statuses = [after], []
    server.halt = lambda: server.statuses.append(403)
    with pytest.raises(ConnectionError, match="403"):
        fetch(server, target)
    server.halt = lambda: None


def test_whole(server, target):
    assert fetch(server, target) == target
    assert_complete(target)
    assert server.asked == [(None, None)]


def test_an_existing_file_is_checked_and_not_fetched_again(server, target, monkeypatch):
    fetch(server, target)
    monkeypatch.setitem(sys.modules, "pooch", None)  # nor is pooch needed
    fetch(server, target)
    assert len(server.asked) == 1
    with pytest.raises(FileExistsError, match=rf"file.bin to be the file with MD5 {md5(OTHER)}, or not to exist"):
        fetch(server, target, OTHER)
    assert_complete(target)


def test_dropped_connections_are_continued_without_fetching_bytes_twice(server, target, waits):
    server.drops = [HALF, 3 * CHUNK, CHUNK + 1, 0, 0]
    fetch(server, target)
    assert_complete(target)
    assert [tag for _, tag in server.asked] == [None, *['"1"'] * 5]
    assert starts(server) == sorted(starts(server))
    assert starts(server)[1] > 10 * CHUNK
    assert server.sent - len(CONTENT) < 3 * CHUNK  # what was under way when the connection dropped
    assert waits == [1, 1, 1, 4, 15]  # longer as long as nothing more has come


def test_an_interrupted_download_is_continued_by_the_next_call(server, target):
    interrupt(server, target)
    assert files(target) == ["file.bin.part", "file.bin.part.json"]
    kept = target.with_name("file.bin.part").stat().st_size
    assert CONTENT.startswith(target.with_name("file.bin.part").read_bytes())
    server.asked.clear()
    fetch(server, target)
    assert server.asked == [(f"bytes={kept}-", '"1"')]
    assert kept > 10 * CHUNK
    assert_complete(target)


def test_interrupted_by_the_user(server, target):
    server.drops = [HALF]
    server.halt = partial(press_ctrl_c, target.with_name("file.bin.part"), 10 * CHUNK)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, target)
    server.asked.clear()
    fetch(server, target)
    assert starts(server)[0] >= 10 * CHUNK
    assert_complete(target)


PROGRAM = """
import os, sys
from pathlib import Path
from lightning_farms.data.download.resumable import fetch_file
print(os.getpid(), flush=True)
fetch_file(sys.argv[1], Path(sys.argv[2]), md5=sys.argv[3])
"""


def test_another_process_is_waited_for_and_if_it_is_killed_its_download_is_continued(server, target, tmp_path):
    reached, killed = threading.Event(), threading.Event()
    server.drops = [HALF]
    server.halt = lambda: (reached.set(), killed.wait(60))
    (tmp_path / "program.py").write_text(PROGRAM)
    program = (tmp_path / "program.py", server.url, target, md5(CONTENT)), {}
    process = threading.Thread(target=run_forked, args=[program], kwargs={"folder": tmp_path, "code": -signal.SIGKILL})
    process.start()
    try:
        assert reached.wait(120)
        waiting = threading.Thread(target=fetch, args=(server, target))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert len(server.asked) == 1
    finally:
        os.kill(int((tmp_path / "out0.txt").read_text()), signal.SIGKILL)
        process.join()
        killed.set()
    waiting.join(60)
    assert len(server.asked) == 2
    assert starts(server)[1] > 10 * CHUNK
    assert_complete(target)


def test_two_at_once_fetch_it_once(server, target):
    threads = [threading.Thread(target=fetch, args=(server, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert_complete(target)


def test_who_waited_for_a_lock_has_it_on_the_file_that_is_there(tmp_path):
    """Not on one that the process before has removed, of which a third would know nothing."""
    path, found = tmp_path / "note", []

    def wait():
        with resumable._locked(path, "", lambda *args: waiting.set()) as file:
            found.append(os.path.samestat(path.stat(), os.fstat(file.fileno())))

    waiting, thread = threading.Event(), threading.Thread(target=wait)
    with resumable._locked(path, "", lambda *args: None):
        thread.start()
        assert waiting.wait(10)
        path.unlink()
    thread.join(10)
    assert found == [True]


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("tag", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, target, conditions, tag):
    """Also by a server that does not understand If-Range, and one that tells versions apart by date only."""
    if not tag:
        server.tag = None
    interrupt(server, target)
    server.content, server.conditions = OTHER, conditions
    server.tag, server.date = '"2"' if tag else None, "Tue, 06 Jan 2026 00:00:00 GMT"
    fetch(server, target, OTHER)
    assert_complete(target, OTHER)
    assert server.asked[-1][0] is None or conditions


@pytest.mark.parametrize("content", [OTHER[:-1], OTHER[:CHUNK], OTHER + b"x"])
def test_a_file_of_another_size_is_fetched_anew(server, target, content):
    """Where nothing else tells versions apart."""
    server.tag = server.date = None
    interrupt(server, target)
    server.content = content
    server.asked.clear()
    fetch(server, target, content)
    assert_complete(target, content)
    assert len(server.asked) == 2  # for the rest, and at once for the whole


def test_weak_tags_are_not_relied_on(server, target):
    server.tag = 'W/"1"'
    interrupt(server, target)
    server.asked.clear()
    fetch(server, target)
    assert [condition for _, condition in server.asked] == [server.date]
    assert_complete(target)


def test_a_server_without_ranges_starts_anew(server, target):
    interrupt(server, target)
    server.ranges = False
    fetch(server, target)
    assert_complete(target)


@pytest.mark.parametrize("drops", [[], [HALF]])
def test_a_server_that_does_not_tell_the_size(server, target, drops):
    """That the connection dropped cannot be known before the checksum."""
    server.length, server.drops = False, drops
    if drops:
        with pytest.raises(
            ConnectionError,
            match=rf"but what was downloaded has MD5 {md5(CONTENT[:HALF])} "
            rf"\({HALF} bytes\)",
        ):
            fetch(server, target)
    fetch(server, target)
    assert_complete(target)


def test_redirections_are_followed_also_when_continuing(server, target):
    """As the archive of PDEBench's files has it: to an address that is signed anew each time."""
    server.redirect, server.drops = True, [HALF]
    fetch(server, target)
    assert starts(server)[1] > 10 * CHUNK
    assert_complete(target)


def test_another_checksum(server, target):
    """What came is complete, and took hours: it is kept under another name."""
    with pytest.raises(
        ConnectionError,
        match=rf"MD5 {md5(OTHER)}, but what was downloaded has MD5 "
        rf"{md5(CONTENT)}.* and was kept as",
    ):
        fetch(server, target, OTHER)
    kept = target.with_name(f"{target.name}.md5-{md5(CONTENT)[:8]}")
    assert files(target) == [kept.name]
    assert kept.read_bytes() == CONTENT


def test_a_complete_part_is_not_asked_for_again(server, target, monkeypatch):
    """Interrupted while it was checked."""

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "md5_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, target)
    fetch(server, target)
    assert len(server.asked) == 1
    assert_complete(target)


@pytest.mark.parametrize("note", ["", "{", '{"validator": 1, "other": 2}', "[]"])
def test_a_part_without_its_note_is_fetched_anew(server, target, note):
    interrupt(server, target)
    target.with_name("file.bin.part.json").write_text(note)
    fetch(server, target)
    assert_complete(target)


@pytest.mark.parametrize("status", [404, 403, 401])
def test_a_refusal_ends_it_at_once(server, target, status, waits):
    server.statuses = [status]
    with pytest.raises(
        ConnectionError, match=rf"Expected to download {server.url}, but it failed: {status} .*other means"
    ):
        fetch(server, target)
    assert len(server.asked) == 1
    assert waits == []
    assert files(target) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(server, target, status, waits):
    server.statuses = [status] * 3
    fetch(server, target)
    assert waits == [4, 15, 30]
    assert_complete(target)


def test_a_server_that_never_answers_rightly(server, target):
    server.statuses = [503] * 10
    with pytest.raises(ConnectionError, match="but it failed: 503"):
        fetch(server, target)
    assert len(server.asked) == 4


def test_a_server_that_drops_for_ever_leaves_what_came(server, target):
    server.drops = [HALF, 0, 0, 0, 0]
    with pytest.raises(ConnectionError, match=r"B are kept in .*file.bin.part: run it again to continue"):
        fetch(server, target)
    assert len(server.asked) == 5
    fetch(server, target)
    assert_complete(target)


def test_no_server(target):
    with range_server() as server:
        url = server.url
    with pytest.raises(ConnectionError, match=rf"Expected to download {url}, but it failed: "):
        fetch_file(url, target, md5=md5(CONTENT))
    assert files(target) == []


def test_no_address(target):
    with pytest.raises(ConnectionError, match=r"Expected to download file.bin, but it failed: Invalid URL"):
        fetch_file("file.bin", target, md5=md5(CONTENT))


def test_not_enough_space(server, target, monkeypatch):
    """For what is missing: what has come needs no more."""
    interrupt(server, target)
    missing = len(CONTENT) - target.with_name("file.bin.part").stat().st_size

    def free(bytes_):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, bytes_))

    free(missing - 1)
    with pytest.raises(OSError, match=r"B of free space in .*sets for the rest of file.bin, .*Make room") as caught:
        fetch(server, target)
    assert not isinstance(caught.value, ConnectionError)
    free(missing)
    fetch(server, target)
    assert_complete(target)


def test_without_pooch(monkeypatch, target):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-farms\[images\]"'):
        fetch_file("http://127.0.0.1/", target, md5="", extra="images")
    assert files(target) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "progress"), [(Terminal, True), (Terminal, False), (io.StringIO, True)])
def test_bars_are_shown_on_a_terminal(server, target, monkeypatch, stream, progress):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    server.drops = [HALF]
    fetch(server, target, progress=progress)
    shown = sys.stderr.getvalue()
    wanted = stream is Terminal and progress
    assert ("Checking file.bin" in shown) == wanted
    assert ("3.0/3.0 MB" in shown) == wanted
    if not wanted:
        assert shown == ""
