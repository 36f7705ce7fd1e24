"""``python -m archloop`` is the command ``archloop``."""

from archloop.cli import main

if __name__ == "__main__":
    main()
