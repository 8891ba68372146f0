"""`python -m lightning_farms`, which runs the command line of lightning_farms.cli."""

from lightning_farms.cli import main

if __name__ == "__main__":
    main()
