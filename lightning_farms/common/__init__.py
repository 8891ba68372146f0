"""What several rooms need: files written whole and read safely, seeded draws, noise, repeated items."""
