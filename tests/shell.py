"""Runs of `clipcls` that start at once, forked from a process that has imported torch already; and a bash of such."""

import contextlib
import importlib
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: in place of a stream: the terminal of `run_on_terminal`
TERMINAL = -9

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


def run_main(
    arguments: Sequence[str], folder: str | Path, environment: dict[str, str], streams: Sequence[int | None]
) -> None:
    """Run the command line in this process, as one that was started with these three streams would.

    Args:
        streams: descriptors; None for a stream that is closed.
    """
    _enter(folder, environment, streams)
    sys.argv = ["clipcls", *arguments]
    from clipcls.cli import main

    main()


def run_on_files(arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """Run the command line in this process on the files `stdin`, `stdout` and `stderr` in `folder`."""
    reading, writing = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    flags = {"stdin": reading, "stdout": writing, "stderr": writing}
    run_main(arguments, folder.parent, environment, [os.open(folder / name, flags[name]) for name in flags])


def _enter(folder: str | Path, environment: dict[str, str], streams: Sequence[int | None]) -> None:
    for number, stream in enumerate(streams):
        if stream is None:
            os.close(number)
        else:
            os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = (
        None if stream is None else open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
        for number, stream in enumerate(streams)
    )
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if "huggingface_hub.constants" in sys.modules:  # it has read an environment that was another one
        importlib.reload(sys.modules["huggingface_hub.constants"])
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


class Started:
    """A run of the command line in a process that is forked off one with torch imported, to be used as a
    `subprocess.Popen`.

    Args:
        forks: a multiprocessing context whose processes begin with torch imported.
        folder: where it runs.
        environment: what its environment has beside this one's.
        streams: `stdin`, `stdout` and `stderr`: a descriptor, PIPE, or None to close it; by default `stdin` is empty,
            and the others are pipes.
        before: called first in the process.
    """

    def __init__(
        self,
        forks: Any,
        folder: Path,
        *arguments: str | Path,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
        **streams: int | None,
    ) -> None:
        self.stdin, self.stdout, self.stderr, theirs = None, None, None, []
        for name in ("stdin", "stdout", "stderr"):
            stream = streams.get(name, subprocess.DEVNULL if name == "stdin" else subprocess.PIPE)
            if stream == subprocess.PIPE:
                reader, writer = os.pipe()
                stream, mine = (reader, writer) if name == "stdin" else (writer, reader)
                setattr(self, name, os.fdopen(mine, "wb" if name == "stdin" else "rb"))
            elif stream == subprocess.DEVNULL:
                stream = os.open(os.devnull, os.O_RDWR)
            elif stream is not None:
                stream = os.dup(stream)
            theirs.append(None if stream is None else Connection(stream))
        request = ([*map(str, arguments)], folder, os.environ | (environment or {}), theirs, before)
        self._process = forks.Process(target=_run_started, args=request)
        self._process.start()
        for connection in filter(None, theirs):
            connection.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"no end within {timeout} seconds"
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[bytes, bytes]:
        """End its input, read both streams until it ends, and close them."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor() as pool:
            output, errors = pool.map(_read_rest, (self.stdout, self.stderr))
        self.close()
        return output, errors

    def close(self) -> None:
        """Wait for its end, and close its streams."""
        self.wait()
        for stream in filter(None, (self.stdin, self.stdout, self.stderr)):
            stream.close()


def _read_rest(stream: Any) -> bytes:
    return stream.read() if stream and not stream.closed else b""


def run_on_terminal(start: Callable[..., Started], *arguments: str | Path, **options: Any) -> tuple[int, bytes, bytes]:
    """Run the command line with a terminal as the streams that are TERMINAL in `options`.

    Returns:
        Its exit code, what the terminal shows, and what was written to the other stream.
    """
    leader, follower = pty.openpty()
    process = start(*arguments, **{name: follower if given == TERMINAL else given for name, given in options.items()})
    os.close(follower)
    shown = b"".join(_read_terminal(leader))
    output, errors = process.communicate()
    return process.wait(), shown, output + errors


def _read_terminal(leader: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # as reading ends when nobody has the terminal any more
        while piece := os.read(leader, 65536):
            yield piece
    os.close(leader)


def _run_started(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    connections: list[Connection | None],
    before: Callable[[], None] | None,
) -> None:
    if before:
        before()
    run_main(arguments, folder, environment, [found and found.fileno() for found in connections])


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
        with ThreadPoolExecutor() as pool:
            written = pool.submit(lambda: b"".join(_read_terminal(terminal)))
            _, errors = process.communicate(timeout=300)
        return Done(process.returncode, _COLOUR.sub("", written.result().decode()).replace("\r\n", "\n"), errors)


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
