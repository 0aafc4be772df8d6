"""`python -m hyperadapter` is the command `hyperadapter`."""

from hyperadapter.cli import main

if __name__ == "__main__":
    main()
