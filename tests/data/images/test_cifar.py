"""CIFAR archives in the exact original layout, tiny: pickles as Python 2 and NumPy 1 wrote them, in a tar.gz."""

import codecs
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import torch

from lightning_farms.data import CIFARDataModule, download_cifar, read_cifar
from lightning_farms.data.images import _restricted_pickle as restricted_pickle
from lightning_farms.data.images import cifar
from lightning_farms.data.images._restricted_pickle import load_arrays

PER_FILE = {10: 10, 100: 100}
RECONSTRUCT = np.zeros(0).__reduce__()[0]
PIXELS = 3 * 32 * 32


class Python2Pickler(pickle._Pickler):
    """Writes bytes and strings as Python 2's str, and arrays under the names they had in NumPy 1; protocol 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def save_str2(self, value):
        content = value.encode() if isinstance(value, str) else value
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    def save_global(self, obj, name=None):
        if obj is RECONSTRUCT:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(obj, name)

    dispatch[bytes] = dispatch[str] = save_str2
    dispatch[type(RECONSTRUCT)] = save_global


def python2(value):
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue()


def contents(classes, seed=0):
    """{file: what is pickled} of a set, as lists of the original keys."""
    draw = np.random.default_rng(seed)
    number = PER_FILE[classes]
    files = {}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    for name in names:
        labels = draw.permutation(number) % classes
        batch = {
            "batch_label": f"batch {name}",
            "data": draw.integers(0, 256, (number, PIXELS), dtype=np.uint8),
            "filenames": [f"image_{i}.png" for i in range(number)],
        }
        if classes == 10:
            batch["labels"] = labels.tolist()
        else:
            batch["fine_labels"], batch["coarse_labels"] = labels.tolist(), (labels // 5).tolist()
        files[name] = batch
    label_names = [f"name {i}" for i in range(classes)]
    files["batches.meta" if classes == 10 else "meta"] = (
        {"num_cases_per_batch": number, "label_names": label_names, "num_vis": PIXELS}
        if classes == 10
        else {"fine_label_names": label_names, "coarse_label_names": [f"group {i}" for i in range(20)]}
    )
    return files


FOLDER = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
ARCHIVE = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}


def write_archive(path, classes, *, files=None, dump=python2):
    files = contents(classes) if files is None else files
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(FOLDER[classes])
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, batch in {**files, "readme.html": None}.items():
            content = b"<html>" if batch is None else batch if isinstance(batch, bytes) else dump(batch)
            member = tarfile.TarInfo(f"{FOLDER[classes]}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module", params=[10, 100])
def original(request, tmp_path_factory):
    """(classes, folder of the archive)."""
    folder = tmp_path_factory.mktemp("original")
    write_archive(folder / ARCHIVE[request.param], request.param)
    return request.param, folder


@pytest.fixture
def accepted(original, monkeypatch):
    """Take the tiny archive's MD5 for the original's."""
    classes, folder = original
    md5 = hashlib.md5((folder / ARCHIVE[classes]).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "SOURCES", {**cifar.SOURCES, classes: cifar.SOURCES[classes]._replace(md5=md5)})
    return md5


def expected(classes):
    files = contents(classes)
    train = [files[name] for name in cifar.SOURCES[classes].train]
    test = files[cifar.SOURCES[classes].test]
    key = "labels" if classes == 10 else "fine_labels"
    return (
        np.concatenate([batch["data"] for batch in train]), [label for batch in train for label in batch[key]],
        test["data"], test[key],
    )  # fmt: skip


def assert_is_the_set(result, classes):
    train_data, train_labels, test_data, test_labels = expected(classes)
    for part, data, labels in ((result.train, train_data, train_labels), (result.test, test_data, test_labels)):
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert part.labels.tolist() == labels
        # the first 1024 entries are the red channel, the first 32 of these the first row
        red, green, blue = np.split(data, 3, axis=1)
        for channel, values in enumerate((red, green, blue)):
            for row in range(32):
                assert np.array_equal(part.images[:, channel, row], values[:, 32 * row : 32 * row + 32])


@pytest.mark.parametrize("where", ["archive", "folder of the archive", "unpacked", "folder of the unpacked"])
def test_reads_the_archive_packed_or_unpacked(original, accepted, tmp_path, where):
    classes, folder = original
    path = folder / ARCHIVE[classes] if where == "archive" else folder
    if "unpacked" in where:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        shutil.unpack_archive(folder / ARCHIVE[classes], tmp_path, **safely)
        path = tmp_path / FOLDER[classes] if where == "unpacked" else tmp_path
    assert_is_the_set(read_cifar(path, classes), classes)


def test_the_pickles_are_those_of_python_2():
    content = python2(contents(100)["train"])
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    read = pickle.loads(content, encoding="latin1")  # as widely done, with nothing of ours
    assert read["batch_label"] == "batch train"
    assert isinstance(pickle.loads(content, encoding="bytes")[b"filenames"][0], bytes)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_python_3_wrote(original, tmp_path, protocol):
    classes, _ = original
    files = {
        name: {key.encode(): value for key, value in batch.items() if key != "filenames"}
        for name, batch in contents(classes).items()
    }
    path = write_archive(tmp_path / "own.tar.gz", classes, files=files, dump=partial(pickle.dumps, protocol=protocol))
    assert_is_the_set(read_cifar(path, classes, checksum=False), classes)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function", [print, eval, np.load, np.frombuffer, open, codecs.encode], ids=lambda f: f.__name__
)
def test_nothing_that_a_pickle_asks_for_is_run(tmp_path, function, capsys):
    mark = tmp_path / "mark"
    argument = f"open({str(mark)!r}, 'w')" if function is eval else str(mark)
    arguments = (
        (argument, "w") if function is open else (argument, "rot13") if function is codecs.encode else (argument,)
    )
    files = contents(100)
    files["train"] = pickle.dumps({b"data": Evil(function, arguments)}, protocol=2)
    path = write_archive(tmp_path / "evil.tar.gz", 100, files=files)
    with pytest.raises(ValueError, match=r"train to be a batch of CIFAR-100, but its pickle cannot be read.*asks for"):
        read_cifar(path, 100, checksum=False)
    assert not mark.exists()
    assert capsys.readouterr().out == ""


class Made:
    """Pickled as a call, of a function that arrays need, and a state that is set afterwards."""

    def __init__(self, function, arguments=None, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Made(np.ndarray, ((1,), "O", b"pointers")), "takes no arguments"),
        (Made(np.dtype, ("O,i4",)), "it asks for an array of type 'O,i4'"),
        (
            Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1 << 40,), np.dtype("u1"), False, b"four")),
            "cannot reshape",
        ),
        (np.zeros(3, object), "type b?'O8'"),
    ],
)
def test_arrays_of_anything_but_bytes_are_refused(made, message):
    with pytest.raises(ValueError, match=f"its pickle cannot be read .*{message}"):
        load_arrays(pickle.dumps(made, protocol=2))


def set_attribute(module, name, attribute):
    """A pickle that asks for a function and sets an attribute of it."""
    state = pickle.dumps((None, {attribute: 1}), protocol=2)[2:-1]
    return pickle.PROTO + b"\2" + f"c{module}\n{name}\n".encode() + state + pickle.BUILD + pickle.STOP


@pytest.mark.parametrize("module_and_name", restricted_pickle._ALLOWED, ids=".".join)
def test_a_pickle_leaves_no_change_behind(module_and_name):
    with pytest.raises(ValueError, match="its pickle cannot be read"):
        load_arrays(set_attribute(*module_and_name, "mark"))
    assert not hasattr(restricted_pickle._ALLOWED[module_and_name], "mark")


def test_another_md5(original):
    classes, folder = original
    source = cifar.SOURCES[classes]
    with pytest.raises(ValueError, match=f"MD5 {source.md5}, but got .* Fetch it anew; `checksum=False`"):
        read_cifar(folder, classes)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive(original, tmp_path, share):
    classes, folder = original
    content = (folder / ARCHIVE[classes]).read_bytes()
    path = tmp_path / "short.tar.gz"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"short.tar.gz to be a complete cifar.*cut short, damaged or no tar.gz"):
        read_cifar(path, classes, checksum=False)


def test_damage_inside(original, tmp_path):
    classes, folder = original
    content = bytearray((folder / ARCHIVE[classes]).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "damaged.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected .*damaged.tar.gz"):
        read_cifar(tmp_path / "damaged.tar.gz", classes, checksum=False)


def test_the_other_sets_archive(original):
    classes, folder = original
    other = 110 - classes
    with pytest.raises(ValueError, match=f"It is the archive of CIFAR-{classes}: use `classes={classes}`"):
        read_cifar(folder / ARCHIVE[classes], other, checksum=False)
    with pytest.raises(FileNotFoundError, match=f"to hold {ARCHIVE[other]}, or what it unpacks to"):
        read_cifar(folder, other)


def test_the_other_sets_original(original, accepted):
    classes, folder = original
    with pytest.raises(ValueError, match=f"but it is the archive of CIFAR-{classes}: use `classes={classes}`"):
        read_cifar(folder / ARCHIVE[classes], 110 - classes)


def test_another_kind_of_archive(tmp_path):
    (tmp_path / "text").write_text("hello")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "text", "text")
    with pytest.raises(ValueError, match=r"to hold cifar-100-python/train, cifar-100-python/test, but it does not\.$"):
        read_cifar(tmp_path / "other.tar.gz", 100, checksum=False)


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as archive:
        for name in ("train", "test"):
            link = tarfile.TarInfo(f"cifar-100-python/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
    with pytest.raises(ValueError, match="to hold cifar-100-python/train, cifar-100-python/test, but it does not"):
        read_cifar(tmp_path / "links.tar.gz", 100, checksum=False)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"to be an archive or a folder, but there is no .*nowhere"):
        read_cifar(tmp_path / "nowhere", 100)


def test_an_unpacked_folder_with_a_file_missing(tmp_path):
    for name, batch in contents(10).items():
        if name != "data_batch_4":
            (tmp_path / name).write_bytes(python2(batch))
    with pytest.raises(FileNotFoundError, match=r"to hold data_batch_4, but it does not"):
        read_cifar(tmp_path, 10)


def changed(**changes):
    return {**contents(100)["train"], **changes}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "it holds a list, not a dict"),
        ({"labels": []}, "it has no 'data' .it has b'labels'"),
        ({"data": np.zeros((1, PIXELS), np.uint8), "labels": [0]}, "it has no 'fine_labels'"),
        (
            changed(data=np.zeros((100, 784), np.uint8)),
            r"its data are \(100, 784\), not an array of shape \(images, 3072\)",
        ),
        (changed(data=np.zeros((100, PIXELS), np.float32)), "it asks for an array of type b'f4', not of uint8"),
        (changed(data=[1]), "its data are list"),
        (changed(fine_labels=[1]), "'fine_labels' are not a list of 100 numbers"),
        (changed(fine_labels=[100] * 100), "'fine_labels' are not all integers from 0 to 99"),
        (changed(fine_labels=[-1] * 100), "not all integers from 0 to 99"),
        (b"", "EOFError"),
        (python2(changed())[:5000], "its pickle cannot be read"),
        (b"not a pickle", "its pickle cannot be read"),
    ],
)
def test_unsuitable_files(tmp_path, batch, message):
    files = {**contents(100), "train": batch}
    path = write_archive(tmp_path / "own.tar.gz", 100, files=files)
    with pytest.raises(ValueError, match=f"own.tar.gz/train to be a batch of CIFAR-100, but .*{message}"):
        read_cifar(path, 100, checksum=False)


@pytest.fixture
def server(tmp_path):
    """A server of a folder on this machine; what it is asked for is noted."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, message, *args):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()
        thread.join()


def test_downloads_once(original, accepted, server, tmp_path):
    classes, folder = original
    served, address, asked = server
    shutil.copy(folder / ARCHIVE[classes], served)
    cache = tmp_path / "cache"
    data = CIFARDataModule(classes=classes, cache_dir=cache, url=f"{address}/{ARCHIVE[classes]}")
    with pytest.raises(FileNotFoundError, match="call `prepare_data"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    assert_is_the_set(data.read(), classes)
    assert len(asked) == 1
    CIFARDataModule(classes=classes, cache_dir=cache, url=f"{address}/{ARCHIVE[classes]}").prepare_data()
    assert len(asked) == 1
    assert [path.name for path in cache.iterdir()] == [ARCHIVE[classes]]


def test_a_download_that_is_not_the_original(original, server, tmp_path):
    classes, folder = original
    served, address, _ = server
    shutil.copy(folder / ARCHIVE[classes], served)
    with pytest.raises(ConnectionError, match=f"with MD5 {cifar.SOURCES[classes].md5}, but what was downloaded has"):
        download_cifar(tmp_path / "cache", classes, url=f"{address}/{ARCHIVE[classes]}")
    (kept,) = (tmp_path / "cache").glob("*")  # under another name
    assert kept.name.startswith(f"{ARCHIVE[classes]}.md5-")
    assert kept.read_bytes() == (folder / ARCHIVE[classes]).read_bytes()


def test_a_download_that_fails(server, tmp_path):
    _, address, _ = server
    with pytest.raises(ConnectionError, match=r"but it failed: 404.* fetch the file by other means"):
        download_cifar(tmp_path / "cache", 100, url=f"{address}/gone.tar.gz")


def test_without_pooch(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-farms\[images\]"'):
        CIFARDataModule(cache_dir=tmp_path).prepare_data()


def test_batches_of_the_data_module(original, accepted):
    classes, folder = original
    data = CIFARDataModule(folder, classes=classes, batch_size=32, seed=0, padding=0, flip=False)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (5 * PER_FILE[10] if classes == 10 else PER_FILE[100], 3, 32, 32)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3))
    assert data.num_classes == classes
    whole = expected(classes)[0].reshape(-1, 3, 32, 32) / 255
    np.testing.assert_allclose(data.statistics.std, whole.std((0, 2, 3)), rtol=1e-5)


def test_training_images_are_shifted_and_mirrored_and_others_are_not(original, accepted):
    classes, folder = original
    data = CIFARDataModule(folder, classes=classes, batch_size=1000, seed=0)
    data.setup("fit")
    (train,), (again,) = data.train_dataloader(), data.train_dataloader()
    assert torch.equal(train.images, again.images)
    black = (0 - data.statistics.mean) / data.statistics.std
    corners = torch.isclose(train.images[:, :, 0, 0], black).all(1).float().mean()
    assert corners > 0.3, "of most images, one edge of the border is seen"
    (first,), (second,) = data.val_dataloader(), data.test_dataloader()
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("classes", [20, "100"])
def test_no_such_set(classes):
    with pytest.raises(ValueError, match=r"Expected argument `classes` to be one of \[10, 100\]"):
        CIFARDataModule(classes=classes)
    with pytest.raises(ValueError, match=r"Expected argument `classes` to be one of \[10, 100\]"):
        read_cifar("x", classes)
