"""The required results of stripping a query: as a sender writes it, and as a listener sees it (spec 2.4)."""

STRIPPING = [
    ("?a=1&a=2&", "?a=1&a=2&"),
    ("?&&&", "?&&&"),
    ("?&foo=bar", "?&foo=bar"),
    ("?sb-hc-undefined", "?sb-hc-undefined"),
    ("?+", "?+"),
    ("?%2B", "?%2B"),
    ("?%20", "?%20"),
    ("?%2f%3a%3d%26", "?%2f%3a%3d%26"),
    ("?", ""),
    ("?sb-hc-id=1", ""),
    ("?sb-hc-id=1&custom=value", "?custom=value"),
    ("?custom=value&sb-hc-id=1", "?custom=value"),
    ("?sb-hc-undefined=true", ""),
    ("?sb-hc-whatever=&foo=bar", "?foo=bar"),
    ("?api-version=abc", "?api-version=abc"),
    ("?key='value'", "?key='value'"),
]
