"""``python -m act``: the same as ``act-profile``."""

from act.cli import main

if __name__ == "__main__":
    main()
