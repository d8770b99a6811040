"""Trio byte movers: streams, TLS, buffers. Not: namespaces, rights, JSON."""
