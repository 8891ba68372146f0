import subprocess
import sys

import pytest

from lightning_farms.common.locks import is_at, lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_the_lock_of_another_process_goes_with_it(tmp_path):
    path = tmp_path / "file"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder, path.open("a") as file:
        holder.stdout.readline()
        assert not lock(file)
        assert not lock(file.fileno())
        holder.kill()
        assert lock(file, wait=True)
    with path.open("a") as file:
        assert lock(file)


def test_a_file_that_has_lost_its_name(tmp_path):
    path = tmp_path / "file"
    with path.open("a") as file:
        assert is_at(path, file)
        assert is_at(path, file.fileno())
        path.unlink()
        assert not is_at(path, file)
        path.touch()
        assert not is_at(path, file)
