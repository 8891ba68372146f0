"""Two processes that find each other, as a cluster's launcher would start them."""

import socket

from tests.forked import run_forked


def launch(module, folder, timeout=240):
    """Run a module on two ranks, with the folder as its argument; what they print is kept there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    run_forked(*(((module, folder), {**found, "LOCAL_RANK": rank}) for rank in "01"), folder=folder, timeout=timeout)
