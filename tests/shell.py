"""A bash in which `clipcls` and `python` start at once, forked from a process that has imported torch already."""

import contextlib
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_MESSAGE_BYTES = 200_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# what is on PATH under the names of programs: it hands its arguments and streams over, and exits as it is told
_STAND_IN = """#!{python} -SE
import json, os, socket, sys
answer, told = os.pipe()
request = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
with socket.socket(fileno=int(os.environ["SHELL_SOCKET"])) as server:
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, told])
os.close(told)
sys.exit(int(os.read(answer, 8) or 70))
"""
# the exported variables are those of the block before, and are kept for the next one
_BLOCK = """[ ! -e {state} ] || . {state}
trap 'export -p > {state}' EXIT
set -e -o pipefail
"""


def run_main(arguments: Sequence[str], folder: str | Path, environment: dict[str, str], streams: Sequence[int]) -> None:
    """Run the command line in this process, as one that was started with these three streams would."""
    _enter(folder, environment, streams)
    sys.argv = ["clipcls", *arguments]
    from clipcls.cli import main

    main()


def _enter(folder: str | Path, environment: dict[str, str], streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
        for number in range(3)
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _answer(request: list[Any], connections: list[Connection]) -> None:
    program, arguments, folder, environment = request
    streams = [connection.fileno() for connection in connections]
    if program == "clipcls":
        run_main(arguments, folder, environment, streams)
        return
    # `python -c CODE` and `python -`
    _enter(folder, environment, streams)
    code = arguments.pop(1) if arguments[0] == "-c" else sys.stdin.read()
    sys.argv = arguments
    exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})


@dataclass(frozen=True, slots=True)
class Done:
    """What a script did.

    Attributes:
        output: standard output, of which the script believes that it is a terminal.
    """

    code: int
    output: str
    errors: str


class Shell:
    """Runs scripts in a folder, one after the other; each knows what those before it exported."""

    def __init__(self, folder: Path, programs: Path, server: socket.socket) -> None:
        self._folder = folder
        self._programs = programs
        self._server = server

    def run(self, script: str) -> Done:
        """Run a script until it ends or a command fails."""
        state = shlex.quote(str(self._programs / "exported"))
        environment = os.environ | {
            "COLUMNS": "72",
            "HOME": str(self._programs),
            "NO_COLOR": "1",
            "PATH": f"{self._programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "SHELL_SOCKET": str(self._server.fileno()),
            "TERM": "dumb",
        }
        terminal, output = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", _BLOCK.format(state=state) + script],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            pass_fds=[self._server.fileno()],
            text=True,
        )
        os.close(output)
        written = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):  # as reading ends when nobody has the terminal any more
                while piece := os.read(terminal, 65536):
                    written.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        _, errors = process.communicate(timeout=300)
        reader.join()
        os.close(terminal)
        return Done(process.returncode, _COLOUR.sub("", written.decode()).replace("\r\n", "\n"), errors)


@contextlib.contextmanager
def shell(folder: Path, programs: Path, forks: Any) -> Iterator[Shell]:
    """Open a shell.

    Args:
        folder: where scripts run.
        programs: a new folder for what is on PATH before everything else.
        forks: a multiprocessing context whose processes begin with torch imported.
    """
    programs.mkdir()
    for name in ("clipcls", "python"):
        (programs / name).write_text(_STAND_IN.format(python=sys.executable))
        (programs / name).chmod(0o755)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = threading.Thread(target=_serve, args=(here, forks))
    server.start()
    with here, there:
        yield Shell(folder, programs, there)
        there.shutdown(socket.SHUT_RDWR)
        server.join()


def _serve(server: socket.socket, forks: Any) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, _MESSAGE_BYTES, 4)
        if not message:
            return
        *streams, told = map(Connection, descriptors)
        process = forks.Process(target=_answer, args=(json.loads(message), streams))
        process.start()
        for stream in streams:
            stream.close()
        threading.Thread(target=_tell, args=(process, told), daemon=True).start()


def _tell(process: Any, told: Connection) -> None:
    process.join()
    os.write(told.fileno(), b"%d" % process.exitcode)
    told.close()
