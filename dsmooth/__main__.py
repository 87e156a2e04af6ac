"""`python -m dsmooth` is the command `dsmooth`."""

from .cli import main

if __name__ == "__main__":
    main()
