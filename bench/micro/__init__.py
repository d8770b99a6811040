"""Single operations of the byte path, without sockets: what one crossing into C costs and moves."""
