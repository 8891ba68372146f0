"""What the callbacks that analyse share: the analysis of a Trainer, and when it is due."""
