"""A network between a client and a server on one machine: python late.py LISTEN-PORT SERVER-PORT MS.

What the server says arrives so much later, in its order, however much is on its way: a round trip takes that much longer.
"""

import queue
import socket
import sys
import threading
import time


def main():
    listen, server, late = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000
    with socket.create_server(("127.0.0.1", listen)) as door:
        while True:
            client, _ = door.accept()
            try:
                upstream = socket.create_connection(("127.0.0.1", server))
            except OSError:
                client.close()
                continue
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(client, upstream), daemon=True).start()
            # Bounded: who does not read does not fill this process either.
            under_way = queue.Queue(4096)
            threading.Thread(target=take, args=(upstream, under_way, late), daemon=True).start()
            threading.Thread(target=give, args=(under_way, client, upstream), daemon=True).start()


def pieces(source):
    try:
        while piece := source.recv(1 << 18):
            yield piece
    except OSError:
        pass


def hang_up(*ends):
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def carry(client, upstream):
    try:
        for piece in pieces(client):
            upstream.sendall(piece)
    except OSError:
        pass
    hang_up(client, upstream)


def take(upstream, under_way, late):
    for piece in pieces(upstream):
        under_way.put((time.monotonic() + late, piece))
    under_way.put((0.0, b""))


def give(under_way, client, upstream):
    while True:
        due, piece = under_way.get()
        if not piece:
            hang_up(client, upstream)
            return
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            client.sendall(piece)
        except OSError:
            # The other threads end with the sockets.
            hang_up(client, upstream)


if __name__ == "__main__":
    main()
