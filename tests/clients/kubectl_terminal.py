#!/usr/bin/env python3
"""Drives `kubectl exec -it` from a real terminal: its size at the start and after a change, what is typed, Ctrl-C,
Ctrl-D and the exit code.

    kubectl_terminal.py KUBECTL POD
"""
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

# Its answers go past Python's buffers, which refuse a handler that interrupts a print.
REMOTE = """
import os, signal, sys
def say(text):
    os.write(1, (text + "\\n").encode())
def size(*_):
    columns, rows = os.get_terminal_size()
    say(f"size {rows}x{columns}")
signal.signal(signal.SIGWINCH, size)
signal.signal(signal.SIGINT, lambda *_: say("interrupted"))
say("a terminal" if sys.stdin.isatty() and sys.stderr.isatty() else "no terminal")
size()
for line in sys.stdin:
    say("typed " + line.strip())
sys.exit(6)
"""


class Terminal:
    def __init__(self, command: list[str], rows: int, columns: int):
        self.heard = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            self.fd = 0
            self.resize(rows, columns)
            os.execvp(command[0], command)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text.encode() not in self.heard:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.heard!r}"
            try:
                chunk = os.read(self.fd, 4096)
            except OSError:
                chunk = b""
            assert chunk, f"{text!r} did not come before the end: {self.heard!r}"
            self.heard += chunk
        self.heard = self.heard.split(text.encode(), 1)[1]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def code(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def main() -> None:
    kubectl, pod = sys.argv[1:]
    terminal = Terminal([kubectl, "exec", "-it", pod, "--", "python3", "-c", REMOTE], rows=33, columns=111)
    terminal.expect("a terminal")
    # kubectl sends the first size when the stream stands, which may be after the program's first look.
    terminal.expect("size 33x111")
    terminal.resize(44, 122)
    terminal.expect("size 44x122")
    terminal.type("hello\r")
    terminal.expect("typed hello")
    terminal.type("\x03")
    terminal.expect("interrupted")
    terminal.type("\x04")
    assert terminal.code() == 6


main()
