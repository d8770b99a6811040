"""The connection manager: listens on hybrid connections and leads their senders to endpoints. The room knows the client
library, endpoints and settings as values. It must not read settings files, print, or know who asks for its status."""
