"""One GET with the standard library's HTTP client: look_urllib.py HOST PORT."""

import sys
import urllib.request

print(urllib.request.urlopen(f"http://{sys.argv[1]}:{sys.argv[2]}/", timeout=10).read().decode())
