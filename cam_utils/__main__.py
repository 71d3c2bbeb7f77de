"""`python -m cam_utils`: the command line."""

from .cli import main

main()
