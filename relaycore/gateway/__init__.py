"""The server: a tree of tasks that puts the rooms together.

Knows every room below it. What may meet what is decided in ``broker/``, how bytes mean something in ``wire/``,
how they move in ``net/``; here is only who waits for whom, for how long, and who is told when it goes wrong.
"""
