"""Output of the callbacks: scalars, pictures and texts for every logger of a Trainer."""
