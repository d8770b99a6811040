"""The embeddable library: listeners and senders, the client's side of the protocol. Not: the gateway's insides."""
