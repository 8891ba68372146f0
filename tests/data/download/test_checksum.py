"""MD5 of files, against the test suite of RFC 1321 and Python's own."""

import hashlib

import pytest

from lightning_farms.data.download._checksum import md5_of


@pytest.mark.parametrize(
    ("content", "digest"),
    [
        (b"", "d41d8cd98f00b204e9800998ecf8427e"),
        (b"message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
        (b"1234567890" * 500_000, hashlib.md5(b"1234567890" * 500_000, usedforsecurity=False).hexdigest()),
    ],
)
def test_digest_and_progress(tmp_path, content, digest):
    path, counts = tmp_path / "file", []
    path.write_bytes(content)
    assert md5_of(path, counts.append) == digest
    assert sum(counts) == len(content)
    assert len(counts) >= len(content) / 2**20, "piece by piece"
