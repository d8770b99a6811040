"""Bytes to meaning and back.

This room knows RFC 6455, RFC 9112, shared access signatures and the ``$hc`` grammar of the Hybrid Connections protocol.
It must not know Trio, clocks, random sources or sockets, nor who is connected: the time, fresh ids and received bytes
come in as arguments. Decoders raise only what their docstrings name, whatever they are fed.
"""
