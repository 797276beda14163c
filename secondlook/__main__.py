"""`python -m secondlook` is the command line, as torchrun expects it."""

from secondlook.cli.app import program

program()
