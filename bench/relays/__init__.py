"""Programs that stand between.

Each runs as a process of its own, writes where it listens to a file, and ends with its standard input.
"""
