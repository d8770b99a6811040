"""How the edge programs are asked and told from outside while they run: a control socket for their own command line,
and an HTTP port for metrics and health. The room knows sockets and JSON, and shows what it is given; it must not know
how connections are managed, nor the command line."""
