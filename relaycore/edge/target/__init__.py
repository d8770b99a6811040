"""The endpoint behind a connection manager: whether it may be dialled, dialling it, how many at once, how fast, and how
it is. The room knows sockets and addresses. It must not know the relay, listeners, or configuration files."""
