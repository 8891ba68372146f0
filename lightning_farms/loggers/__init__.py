"""What the callbacks write, and where: scalars, pictures and texts for every logger of a Trainer."""
