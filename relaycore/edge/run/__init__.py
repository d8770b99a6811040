"""Starts a program that reaches configured names through the relay, without privileges: private name files, a network
of its own, or proxy variables. The room knows `edge.connect` and Linux. It must not read settings files or print."""
