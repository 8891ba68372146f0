"""Two processes that find each other, as a cluster's launcher would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(module, folder, timeout=240):
    """Run a module on two ranks, with the folder as its argument; what they print is kept there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(__file__).parents[2])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", module, str(folder)]
    processes = []
    for rank in "01":
        variables = {**os.environ, **environment, "LOCAL_RANK": rank}
        with (folder / f"out{rank}.txt").open("w") as out, (folder / f"err{rank}.txt").open("w") as err:
            processes.append(subprocess.Popen(command, cwd=root, env=variables, stdout=out, stderr=err))
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    errors = "\n".join((folder / f"err{rank}.txt").read_text()[-3000:] for rank in "01")
    assert codes == [0, 0], errors
