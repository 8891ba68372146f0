"""Layer-wise hyperparameters in other trainers' loops; each module needs its own package."""
