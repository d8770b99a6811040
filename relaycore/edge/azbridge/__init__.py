"""azbridge's way of using a hybrid connection: a preamble that names a port, datagrams, its expressions and its files.

Knows the library, and the settings that its files become. Not: who manages listeners and forwards, or the command line.
"""
