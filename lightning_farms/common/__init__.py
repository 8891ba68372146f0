"""Helpers for several rooms: files written atomically and read safely, seeded draws, noise, repeated items."""
