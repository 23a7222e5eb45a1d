"""``python -m landscape``."""

from landscape.cli import main

if __name__ == "__main__":
    main()
