"""16x16 flows and one-block networks, for runs of the command line that take a second."""

from pathlib import Path

SIZES = {"patch_size": 4, "embed_dim": 8, "depth": 1, "n_blocks": 2, "out_layer_dim": 4}
CONFIG = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    },
    "model": {"network": {"class_path": "DPOT", "init_args": SIZES}},
    "data": {
        "in_timesteps": 3,
        "test_fraction": 0.25,
        "simulation": {"trajectories": 4, "resolution": 16, "frames": 6},
    },
}


def checkpoint():
    (path,) = Path("checkpoints").glob("*.ckpt")
    return path
