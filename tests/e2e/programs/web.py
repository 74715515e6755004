"""The web half of the compose scenario: counts requests in redis, by its service's name."""

import http.server
import os
import socket


def redis(*words):
    with socket.create_connection((os.environ["DATABASE"], 6379), timeout=30) as connection:
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return connection.makefile("r").readline().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/kernel":
            with open("/proc/sys/kernel/random/boot_id") as file:
                text = file.read()
        else:
            text = f"{os.environ['GREETING']} {redis('INCR', 'hits')}\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


print("serving", flush=True)
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
