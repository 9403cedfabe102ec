# What `python` of this folder begins with, followed by this: asks the server for a process and ends as that does.
import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def pass_on(number, _):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


server = socket.socket(socket.AF_UNIX)
server.connect(PLACE)  # noqa: F821
request = {
    "words": sys.argv[1:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "ignored": [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN],
}
body = json.dumps(request).encode()
socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
server.sendall(body)
answers = server.makefile("rb")
pid = int(answers.readline())
for number in PASSED_ON:
    if number not in request["ignored"]:
        signal.signal(number, pass_on)
status = int(answers.readline())
if status < 0:  # a signal has ended it
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
