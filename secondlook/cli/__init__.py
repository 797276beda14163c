"""The command line."""

from secondlook.cli.app import main

__all__ = ["main"]
