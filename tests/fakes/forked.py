"""A fake program that starts at once: a process that has imported it forks each time that it is asked for.

`forked.py --serve SOCKET MODULE` imports MODULE from this folder and waits, until its standard input ends.
`forked.py SOCKET ARGUMENT...` is MODULE's `main()` with these arguments, files, environment and folder: it ends as that ends,
by a signal as well, and that is killed when it is. Importing NumPy, ONNX and ONNX Runtime costs half a second each time
otherwise, and a search asks for ten of these.
"""

import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

MOST = 1 << 20  # bytes of a request


def ask(address: str, arguments: list[str]) -> None:
    request = json.dumps({"argv": arguments, "environ": dict(os.environ), "folder": str(Path.cwd())}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [request], [0, 1, 2])
        (status,) = struct.unpack("i", connection.recv(4))
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def serve(address: str, name: str) -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    module = importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who look after one request
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            waiting, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in waiting:
                return
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                look_after(connection, module)
            connection.close()


def look_after(connection: socket.socket, module) -> None:
    """Run one request in a fork; whoever asked hears how it ended, and is listened to for the end of its own."""
    request, files, _, _ = socket.recv_fds(connection, MOST, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        run(json.loads(request), files, module)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ended in ready:
        connection.send(struct.pack("i", status))
    os._exit(0)


def run(request: dict, files: list[int], module) -> None:
    code = 1
    try:
        for standard, given in enumerate(files):
            os.dup2(given, standard)
        os.environ.clear()
        os.environ.update(request["environ"])
        os.chdir(request["folder"])
        sys.argv[1:] = request["argv"]
        code = module.main()
    except BaseException:  # noqa: BLE001  the fork must end here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        ask(sys.argv[1], sys.argv[2:])
