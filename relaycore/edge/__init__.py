"""Programs for what is no relay client: they stand between the library and servers that know nothing of relays. The
room knows `client`, `net` and `wire`. It must not know the gateway, its store, or the command line."""
