"""The sender's side: local programs reach hybrid connections at local addresses. The room knows listeners, retries and
the names that lead to a forward. It must not know where settings come from, or the command line."""
