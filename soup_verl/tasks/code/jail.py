"""Runs programs in sandboxes; started by `sandbox.py` with a bare interpreter, which knows no package of ours:

    python -P -s -S jail.py FD

    caller ── FD ──► server ── fork ──► keeper ── fork, namespaces ──► init ── fork ──► program, once an input   (stdin)
       └─ a socket a program ──────► waits for it ◄──────────────── pid 1 ── fork ──► program, serving calls  (assert)
                                                                        └─── fork ──► its tests, in `remote.py`'s way

FD is a socket over which the sockets come, one a program. On those go messages of `remote.send`: the job first,
answered by {"ready": true} or {"refused": why}; then, as the style has it, {"input": text} -> {"end", "output": text}
any number of times, or {"setup", "tests", "all"} -> {"end", "passed": [bool, ..]} once. When a socket closes, its
program ends; when FD does, everything does. `end` is "", or how the program came to no good end: "crashed", "timeout",
"output" (more than is read).
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from soup_verl.tasks.code import kernel, remote
else:  # a bare interpreter finds them beside this file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import kernel
    import remote

    sys.path.pop(0)
STEP = 1 << 16
PASSED, FAILED, GONE = b"1", b"0", b"-"
"""Of a test; `GONE`: the program did not live to answer it."""


class Init:
    """The process that everything of the program's descends from; a program cannot reach it."""

    def __init__(self, job: dict[str, Any], control: int):
        self.job, self.limits, self.control = job, job["limits"], control

    def run(self) -> NoReturn:
        """Until the caller closes the socket."""
        if self.job["style"] == "assert":
            self._assert()
        while True:
            self._with_input(remote.receive(self.control)["input"])

    def _with_input(self, text: str) -> None:
        stdin = os.memfd_create("input")
        _write(stdin, text.encode("utf-8", "replace"))
        os.lseek(stdin, 0, os.SEEK_SET)
        output, stdout = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._enter_program(stdin, stdout, ())
            run_program(self.job["program"])
        os.close(stdin)
        os.close(stdout)
        end, said = self._watch(pid, output, self.limits["output"])
        os.close(output)
        remote.send(self.control, {"end": end, "output": said.decode("utf-8", "replace")})

    def _assert(self) -> None:
        requests, ask = os.pipe()
        answers, replies = os.pipe()
        nothing = os.open("/dev/null", os.O_RDWR)
        program = os.fork()
        if program == 0:  # before the tests are known to this process
            requests, replies = self._enter_program(nothing, nothing, (requests, replies))
            names = run_module(self.job["program"])
            remote.serve(names, requests, replies)
        os.close(requests)
        os.close(replies)
        tests = remote.receive(self.control)
        verdicts, verdict = os.pipe()
        pid = os.fork()
        if pid == 0:
            ask, answers, verdict = self._enter_program(nothing, nothing, (ask, answers, verdict))
            check(tests, remote.asker(ask, answers), verdict)
        os.close(verdict)  # the others stay: the program must not end before it is looked at
        end, said = self._watch(pid, verdicts, len(tests["tests"]), program)
        remote.send(self.control, {"end": end, "passed": [byte == ord(PASSED) for byte in said]})

    def _enter_program(self, stdin: int, stdout: int, keep: tuple[int, ...]) -> tuple[int, ...]:
        """In a child: its files, limits and filter; returns where the files to `keep` are now."""
        os.setsid()
        high = [_high_copy(fd) for fd in (stdin, stdout, *keep)]
        os.dup2(high[0], 0)
        os.dup2(high[1], 1)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        kept = tuple(os.dup2(fd, 3 + i) for i, fd in enumerate(high[2:]))
        os.closerange(3 + len(kept), HIGH + 16)
        for kind, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, self.limits["file_size"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_AS, self.limits["memory"]),
            (resource.RLIMIT_NPROC, self.limits["processes"]),
        ):
            if most is not None:
                resource.setrlimit(kind, (most, most))
        seconds = self.limits["cpu_s"]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        kernel.filter_system_calls()
        return kept

    def _watch(self, pid: int, output: int, most: int, program: int | None = None) -> tuple[str, bytes]:
        """How a child ended, or the program beside it, within its limits, and the first bytes that the child wrote;
        nothing of both is left."""
        deadline = time.monotonic() + self.limits["wall_s"]
        ended = os.pidfd_open(pid)
        poll = select.poll()
        for fd in (ended, output, self.control):
            poll.register(fd, select.POLLIN)
        said, end = b"", ""
        while True:
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if self.control in ready:
                self._leave()
            if ready.get(output, 0) & select.POLLIN:
                said += os.read(output, STEP)
            elif output in ready:
                poll.unregister(output)  # closed; the child may go on
            if len(said) > most:
                end = "output"
            elif not ready:
                end = "timeout"
            elif ended not in ready or ready.get(output, 0) & select.POLLIN:
                continue  # what it wrote before it ended is read first
            break
        os.close(ended)
        how = end or self._how(pid)
        if not how and program is not None:
            how = self._how(program, 0 if said.endswith(GONE) and _ends_soon(program) else os.WNOHANG)
        self._end_all()
        return how, said[:most]

    def _how(self, pid: int, options: int = 0) -> str:
        _, status, used = os.wait4(pid, options)
        if status == 0:
            return ""
        slow = used.ru_utime + used.ru_stime >= self.limits["cpu_s"]
        return "timeout" if slow or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU) else "crashed"

    def _end_all(self) -> None:
        """Kill and reap whatever descends from this process."""
        while True:
            self._kill_all()
            if _reap():
                return
            time.sleep(0.001)

    def _kill_all(self) -> None:
        if self.job["isolate"]:
            with _no_process():
                os.kill(-1, signal.SIGKILL)  # all but the first process of a namespace of processes
            return
        for pid in _descendants(os.getpid()):
            with _no_process():
                os.kill(pid, signal.SIGKILL)

    def _leave(self) -> NoReturn:
        self._end_all()
        os._exit(0)


def _ends_soon(pid: int) -> bool:
    """Whether a child whose files are closed already ends within a second, which takes it microseconds."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    found = bool(poll.poll(1000))
    os.close(ended)
    return found


HIGH = 200  # above every descriptor that init has


def _high_copy(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _no_process:
    """A process may be gone before it is killed."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, *_: Any) -> bool:
        return kind is not None and issubclass(kind, ProcessLookupError)


def _descendants(pid: int) -> list[int]:
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *_descendants(child)]
    except OSError:
        pass
    return found


def run_module(source: str, name: str = "program") -> dict[str, Any]:
    """The names that a program's text makes."""
    import _sitebuiltins

    builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D")
    module = type(sys)(name)
    sys.modules[name], sys.argv = module, ["program.py"]
    for own in ("kernel", "remote"):
        sys.modules.pop(own, None)
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def run_program(source: str) -> NoReturn:
    """As `python program.py` does, threads and `atexit` included; but the interpreter is not taken apart at the end,
    which would cost more than most programs."""
    status = 1
    try:
        run_module(source, "__main__")
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # what Python would print a traceback of
        pass
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # the program may have broken any of them
        status = 1
    os._exit(status & 255)


def check(tests: dict[str, Any], ask: Any, verdict: int) -> NoReturn:
    """Write `PASSED`, `FAILED` or `GONE` for each test, up to the first not passed unless all are asked for."""
    names = remote.Names(ask)
    for i, text in enumerate([tests["setup"], *tests["tests"]]):
        try:
            code = compile(text, "tests.py", "exec", dont_inherit=True)
            names.add(code)
            exec(code, names)
            byte = PASSED
        except remote.Gone:
            byte = GONE
        except BaseException:  # also what the program raised
            byte = FAILED
        if i or byte != PASSED:
            os.write(verdict, byte)
        if byte != PASSED and not (i and tests["all"]):
            break
    os._exit(0)


def keep(control: int) -> None:
    """The keeper's part: shut itself in, fork init, wait for it. Its end is the program's, nothing of it is left."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    job = remote.receive(control)
    try:
        if job["isolate"]:
            kernel.enter_namespaces()
    except OSError as error:
        remote.send(control, {"refused": error.strerror})
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if job["isolate"]:
            kernel.enter_root(job["visible"], at="/proc", size=job["limits"]["files"])
        else:
            os.chdir(job["work"])
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        kernel.drop_privileges(job["uid"])
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
    except OSError as error:
        remote.send(control, {"refused": error.strerror})
        return
    sys.path[:] = [*sys.path, *job["path"]]
    remote.send(control, {"ready": True})
    Init(job, control).run()


def _reap(*_: Any) -> bool:
    """Wait for the children that have ended; whether there are none left."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
        return False
    except ChildProcessError:
        return True


def main(requests: int) -> None:
    """The server's part: a keeper for every socket that comes."""
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(fileno=requests) as server:
        while True:
            message, sockets, _, _ = socket.recv_fds(server, 1, 1)
            if not message:
                return
            if os.fork() == 0:
                server.close()
                break
            os.close(sockets[0])
    try:
        keep(sockets[0])
    except remote.Gone:
        os._exit(0)


for name in ("bisect", "collections", "functools", "heapq", "math", "random", "re", "string", "typing"):
    importlib.import_module(name)  # once, for all programs

if __name__ == "__main__":
    gc.freeze()  # what is imported stays shared between the forks
    main(int(sys.argv[1]))
