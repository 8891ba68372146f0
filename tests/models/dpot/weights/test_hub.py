import functools
import re
import sys
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from lightning_farms.models import DPOT, download_released, load_weights, released_size, save_weights

SMALL = {
    "img_size": 16, "patch_size": 8, "in_timesteps": 3, "embed_dim": 8, "depth": 1, "n_blocks": 2, "out_layer_dim": 4,
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ELSEWHERE = r"download model_Ti\.pth of hzk17/DPOT from the Hugging Face Hub on another machine, and give its path"


class _Hub(ThreadingHTTPServer):
    """As much of the Hugging Face Hub as a download of one file needs; `requests` tells what was asked for."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.requests, self.refusal, self.broken = content, [], None, False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        hub = self.server
        hub.requests.append((self.command, self.path))
        found = re.fullmatch(r"/hzk17/DPOT/resolve/(main|v1|[0-9a-f]{40})/model_Ti\.pth", self.path)
        status, code = hub.refusal or ((200, None) if found else (404, "RevisionNotFound"))
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("ETag", '"074c337f"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(hub.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(hub.content[: len(hub.content) // 2] if hub.broken else hub.content)
            self.close_connection = hub.broken


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DPOT(**SMALL)


@pytest.fixture
def hub(tmp_path, network, monkeypatch):
    """A server on this machine that the real hf_hub_download is sent to."""
    import huggingface_hub

    save_weights(network, tmp_path / "small.pth")
    with _Hub((tmp_path / "small.pth").read_bytes()) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        download = functools.partial(huggingface_hub.hf_hub_download, endpoint=server.url)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
        yield server
        server.shutdown()


def _same(first, second):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tiny", "Tiny", "Ti"])
def test_download_once_then_from_the_cache(hub, network, tmp_path, name):
    cache = tmp_path / "cache"
    _same(DPOT.from_pretrained(name, cache_dir=str(cache)), network)
    assert [method for method, _ in hub.requests].count("GET") == 1
    assert set(hub.requests) == {(method, "/hzk17/DPOT/resolve/main/model_Ti.pth") for method in ("HEAD", "GET")}
    _same(DPOT.from_pretrained(name, cache_dir=str(cache)), network)
    assert [method for method, _ in hub.requests].count("GET") == 1
    before = list(hub.requests)
    _same(DPOT.from_pretrained(name, cache_dir=str(cache), local_files_only=True), network)
    assert hub.requests == before
    file = download_released(name, cache_dir=cache, local_files_only=True)
    assert file.name == "model_Ti.pth"
    assert file.is_relative_to(cache)


def test_from_the_cache_when_the_hub_is_out_of_reach(hub, network, tmp_path):
    DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"))
    hub.refusal = (503, "ServiceUnavailable")
    _same(DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache")), network)


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_revision(hub, tmp_path, revision):
    download_released("tiny", cache_dir=tmp_path / "cache", revision=revision)
    assert {path for _, path in hub.requests} == {f"/hzk17/DPOT/resolve/{revision}/model_Ti.pth"}


def test_settings_that_tensors_do_not_show_are_those_of_the_release(hub, network, tmp_path):
    torch.save({"model": network.state_dict()}, tmp_path / "plain.pth")
    hub.content = (tmp_path / "plain.pth").read_bytes()
    model = DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"))
    assert (model.config["modes"], model.config["act"]) == (32, "gelu")
    model = DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"), modes=4, img_size=32)
    assert (model.config["modes"], model.img_size) == (4, 32)
    assert set(model.load_report.adapted) == {"pos_embed"}


def test_modes_that_a_released_file_says_wrongly_are_not_warned_of(hub, network, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    torch.save({"model": network.state_dict(), "args": Namespace(modes=1, act="gelu")}, tmp_path / "wrong.pth")
    hub.content = (tmp_path / "wrong.pth").read_bytes()
    load_weights(DPOT(**SMALL), "tiny")
    with pytest.warns(UserWarning, match="was saved with modes=1, but the model was built with modes=32"):
        load_weights(DPOT(**SMALL), tmp_path / "wrong.pth")


def test_load_weights_by_name(hub, network, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    other = DPOT(**SMALL | {"img_size": 32})
    report = load_weights(other, "tiny", adapt=True)
    assert report.source.endswith("model_Ti.pth")
    assert torch.equal(other.blocks[0].filter.w1, network.blocks[0].filter.w1)


REFUSALS = {
    "no_file": ((404, "EntryNotFound"), FileNotFoundError, "no such file or revision. Check argument `revision`"),
    "no_revision": ((404, "RevisionNotFound"), FileNotFoundError, "no such file or revision"),
    "no_repository": ((404, "RepoNotFound"), PermissionError, "hf auth login"),
    "gated": ((403, "GatedRepo"), PermissionError, r"refuses it \(.*403 Forbidden.*hf auth login"),
    "unauthorized": ((401, "RepoNotFound"), PermissionError, "hf auth login"),
    "down": ((503, "ServiceUnavailable"), ConnectionError, "Hub to answer, as model_Ti.pth of hzk17/DPOT is not"),
}


@pytest.mark.parametrize(("refusal", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_to_do(hub, tmp_path, refusal, error, message):
    hub.refusal = refusal
    with pytest.raises(error, match=f"{message}.*{ELSEWHERE}"):
        DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"))


def test_transfer_that_breaks_off(hub, network, tmp_path):
    hub.broken = True
    with pytest.raises(ConnectionError, match=f"Expected the download of model_Ti.pth.*it failed.*{ELSEWHERE}"):
        DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"))
    hub.broken = False
    _same(DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache")), network)


def test_nobody_listens(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match=rf"does not \(ConnectError: .*HF_HUB_OFFLINE.*{ELSEWHERE}"):
        download_released("tiny", cache_dir=tmp_path / "cache")


def test_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=f"offline mode.*HF_HUB_OFFLINE.*{ELSEWHERE}"):
        download_released("tiny", cache_dir=tmp_path / "cache")
    assert hub.requests == []


def test_only_local_files(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"in the cache, as argument `local_files_only` is set.*{ELSEWHERE}"):
        DPOT.from_pretrained("tiny", cache_dir=str(tmp_path / "cache"), local_files_only=True)
    assert hub.requests == []


def test_errors_of_the_file_system_are_left_as_they_are(hub, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError):
        download_released("tiny", cache_dir=tmp_path / "file")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=rf'pip install "lightning-farms\[hub\]"\. Or {ELSEWHERE}'):
        DPOT.from_pretrained("tiny")


def test_files_need_no_package(tmp_path, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    save_weights(network, "model_Ti.pth")
    _same(DPOT.from_pretrained("model_Ti.pth"), network)
    (tmp_path / "tiny").write_bytes((tmp_path / "model_Ti.pth").read_bytes())
    _same(DPOT.from_pretrained("./tiny"), network)
    _same(DPOT.from_pretrained(tmp_path / "tiny"), network)


@pytest.mark.parametrize("name", ["model_Ti.pth", "Big", "hzk17/DPOT"])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"existing checkpoint file or a released size \('tiny'.* got '{name}'"
    ):
        DPOT.from_pretrained(name)


def test_every_size_has_its_file(hub):
    for name in ("small", "medium", "large", "huge"):
        with pytest.raises(FileNotFoundError, match=released_size(name).file):
            download_released(name)
