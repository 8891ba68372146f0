"""Layer-wise hyperparameters in the training loops of other packages; each module needs its own package."""
