"""`python -m cam_utils`: the command line."""

from .cli import main

if __name__ == "__main__":  # and not in the processes that it starts
    main()
