"""``python -m embcache``: the command line where no script of that name is on the path."""

from embcache.cli import main

if __name__ == "__main__":
    main()
