"""MD5 of files, against the standard test suite of RFC 1321."""

import pytest

from lightning_farms.data.download._checksum import md5_of


@pytest.mark.parametrize(
    ("content", "digest"),
    [
        (b"", "d41d8cd98f00b204e9800998ecf8427e"),
        (b"message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
        (b"a" * 5_000_000, None),
    ],
)
def test_digest_and_progress(tmp_path, content, digest):
    path, counts = tmp_path / "file", []
    path.write_bytes(content)
    found = md5_of(path, counts.append)
    assert sum(counts) == len(content)
    assert found == md5_of(path)
    assert digest in (None, found)
