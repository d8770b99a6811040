"""How often C is called."""


class CountingLib:
    """Stands where a module of ours keeps ``lib``, and counts the calls."""

    def __init__(self, lib):
        self._lib = lib
        self.calls = []

    def __getattr__(self, name):
        value = getattr(self._lib, name)
        if not callable(value):
            return value

        def counted(*args):
            self.calls.append(name)
            return value(*args)

        return counted
