"""One GET over a plain socket: look.py HOST PORT."""

import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    connection.sendall(f"GET / HTTP/1.0\r\nHost: {sys.argv[1]}\r\n\r\n".encode())
    answer = b""
    while data := connection.recv(4096):
        answer += data
print(answer.decode().rpartition("\r\n\r\n")[2])
