"""`python -m quell` is `quell`."""

from quell.cli import main

if __name__ == "__main__":
    main()
