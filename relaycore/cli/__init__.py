"""The commands: words on a command line become calls of the rooms below, and their errors become exit codes.

Knows click, files, terminals and signals. Not: anything about the wire. Each command has a module of its own, loaded
when it is called, so that ``relaycore --help`` answers without loading Trio.
"""

from .app import main

__all__ = ["main"]
