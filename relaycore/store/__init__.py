"""The gateway store: where definitions are kept so that they outlive the process.

Knows namespaces, hybrid connections and rules as values of ``broker.model``, and files, transactions and worker
threads. Must not know policy: who may do what is decided in ``broker``, and what a definition may look like is
validated by ``broker.model``.
"""
