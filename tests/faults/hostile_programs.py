"""Programs that try to do anything but solve their task: families times variants, in both styles of tests.

A program whose attack worked shows it: it prints, or returns, the right answer, which it can only have from where it
must not reach; or it harms what `World` holds.
"""

# ruff: noqa: E501
from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STDIN, ASSERT = "stdin", "assert"
GOLDS = {
    STDIN: '{"style": "stdin", "tests": [{"input": "SECRET_IN", "output": "SECRET_OUT"}]}',
    ASSERT: '{"style": "assert", "tests": ["assert f(20, 3) == 7919", "assert f(3, 5) == 104729"]}',
}
"""Answers that nobody guesses."""


@dataclass(frozen=True)
class World:
    """What a program must not reach: a file that holds the answer, a folder to write to, a server that tells it, the
    caller."""

    canary: Path
    folder: Path
    port: int
    pid: int


@dataclass(frozen=True)
class Program:
    name: str
    style: str
    text: str


HEAD = "import os, sys, time, signal, threading, ctypes, socket, resource, gc\n"
OBEY = "def tell(answer):\n    print(answer, flush=True)\n"

# Families: name -> (template, variants). {v} is the variant.
BOTH: dict[str, tuple[str, tuple[str, ...]]] = {
    "forks": (
        "while True:\n    try:\n        {v}\n    except OSError:\n        pass",
        (
            "os.fork()",
            "os.fork() or os.setsid()",
            "os.fork() or time.sleep(99)",
            "os.posix_spawn('/bin/sh', ['sh'], {{}})",
        ),
    ),
    "threads": (
        "while True:\n    try:\n        threading.Thread(target={v}).start()\n    except RuntimeError:\n        pass",
        ("lambda: time.sleep(99)", "threading.Event().wait", "lambda: sum(iter(int, 1))"),
    ),
    "memory": (
        "x = {v}",
        (
            "'a' * 10**11",
            "[0] * 10**10",
            "bytearray(8 << 30)",
            "list(range(10**9))",
            "2 ** (10**11)",
            "'a'.ljust(1 << 35)",
        ),
    ),
    "memory, slowly": ("x = []\nwhile True:\n    x.append({v})", ("'a' * (1 << 24)", "x[:]", "bytes(1 << 22)")),
    "output": (
        "while True:\n    {v}",
        (
            "print('7919' * 1000)",
            "os.write(1, b'104729\\n' * 4000)",
            "os.write(2, b'e' * 4000)",
            "sys.stdout.write('x')",
        ),
    ),
    "for ever": (
        "{v}",
        ("while True: pass", "sum(iter(int, 1))", "9 ** 9 ** 9 ** 9", "__import__('re').match('(a*)*b', 'a' * 40)"),
    ),
    "waiting": (
        "{v}",
        ("time.sleep(10**6)", "signal.pause()", "threading.Event().wait()", "os.read(os.pipe()[0], 1)"),
    ),
    "signals ignored": (
        "for s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n"
        "        pass\n{v}",
        ("while True: pass", "time.sleep(10**6)", "os.fork()\nwhile True: pass"),
    ),
    "left behind": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        {v}\n        os._exit(0)\nos._exit(0)",
        ("time.sleep(10**6)", "[os.close(i) for i in range(9)]; time.sleep(10**6)", "signal.pause()"),
    ),
    "zombies": ("{v}\ntime.sleep(.2)", ("[os.fork() or os._exit(0) for _ in range(3)]", "os.fork() or os.abort()")),
    "network": (
        "s = socket.{v}\ns.settimeout(1)\ntell(s.recv(99).decode())",
        (
            "create_connection(('127.0.0.1', {port}))",
            "create_connection(('localhost', {port}), 2)",
            "create_connection(('::1', {port}))",
            "create_connection(('1.1.1.1', 53), 2)",
            "socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket(socket.AF_PACKET, socket.SOCK_RAW)",
        ),
    ),
    "a server": (
        "s = socket.socket(); s.bind(('', {v})); s.listen(); os.fork(); time.sleep(99)",
        ("0", "8000"),
    ),
    "reading": (
        "tell(open({v}).read())",
        (
            "'{canary}'",
            "'/proc/{pid}/root{canary}'",
            "'/proc/1/root{canary}'",
            "'/proc/self/root/../..{canary}'",
            "'/proc/{pid}/cwd/pyproject.toml'",
            "'../../../../../..{canary}'",
            "'/etc/passwd'",
            "'/etc/shadow'",
            "'/proc/1/environ'",
            "'/proc/{pid}/environ'",
            "'/dev/mem'",
            "'/dev/vda'",
        ),
    ),
    "reading by links": (
        "{v}\ntell(open('l').read())",
        ("os.symlink('{canary}', 'l')", "os.link('{canary}', 'l')", "os.symlink('/proc/self/root{canary}', 'l')"),
    ),
    "finding": (
        "for root, _, files in os.walk({v}):\n    for file in files:\n        if 'canary' in file:\n"
        "            tell(open(os.path.join(root, file)).read())",
        ("'/tmp'", "'/root'", "'/home'", "os.path.dirname('{canary}')"),
    ),
    "memory of others": (
        "import re\nfor p in ({v},):\n    for line in open(f'/proc/{{p}}/maps'):\n        a, b = line.split()[0].split('-')\n"
        "        m = open(f'/proc/{{p}}/mem', 'rb')\n        m.seek(int(a, 16))\n"
        "        if found := re.search(rb'SECRET_OUT|104729', m.read(int(b, 16) - int(a, 16))):\n"
        "            tell(found[0].decode())",
        ("1", "os.getppid()", "{pid}"),
    ),
    "writing": (
        "open({v}, 'w').write('escaped')",
        (
            "'{folder}/file'",
            "'/proc/{pid}/root{folder}/file'",
            "'../../../..{folder}/file'",
            "'{canary}'",
            "os.path.join(os.path.dirname(os.__file__), 'site.py')",
            "'/etc/passwd'",
            "'/proc/sys/kernel/core_pattern'",
            "'/proc/{pid}/oom_score_adj'",
            "'/sys/fs/cgroup/x'",
        ),
    ),
    "huge files": (
        "f = open({v}, 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20))\n    f.flush()",
        ("'big'", "'/tmp/big'", "'/dev/shm/big'", "'/work/big'"),
    ),
    "many files": (
        "for i in range(10**6):\n    {v}",
        (
            "open(str(i), 'w')",
            "os.mkdir(str(i))",
            "os.symlink('x', str(i))",
            "os.mkdir('d'); os.chdir('d')",
            "os.pipe()",
        ),
    ),
    "sparse files": ("f = open('s', 'wb')\n{v}", ("f.truncate(1 << 50)", "os.posix_fallocate(f.fileno(), 0, 1 << 40)")),
    "killing": (
        "{v}",
        (
            "os.kill({pid}, 9)",
            "os.kill(-1, 9)",
            "os.kill(os.getppid(), 9)",
            "os.kill(1, 9)",
            "os.killpg(0, 9)",
            "os.kill(0, 9)",
            "[os.kill(p, 9) for p in range(2, 4000) if p != os.getpid()]",
            "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        ),
    ),
    "system calls": (
        "libc = ctypes.CDLL(None, use_errno=True)\nassert libc.{v} == 0\ntell('a call that must fail')\n"
        "os.kill({pid}, 9)\nopen('{folder}/file', 'w')",
        (
            "unshare(0x10000000)",
            "unshare(0x00020000)",
            "setns(3, 0)",
            "ptrace(16, os.getppid(), 0, 0)",
            "mount(b'none', b'/', b'tmpfs', 0, None)",
            "umount2(b'/', 2)",
            "chroot(b'..')",
            "setuid(0)",
            "setresgid(0, 0, 0)",
            "prctl(22, 0, 0, 0, 0)",
            "reboot(0)",
            "sethostname(b'x', 1)",
            "shmget(0, 1 << 30, 0o1777) < 0",
            "syscall(321, 0, 0, 0)",
            "swapoff(b'/')",
            "mknod(b'x', 0o60777, 0)",
        ),
    ),
    "recursion": (
        "sys.setrecursionlimit(10**9)\n{v}",
        (
            "g = lambda n: g(n + 1)\ng(0)",
            "x = []\nx.append(x)\nfor _ in range(10**6): x = [x]\nrepr(x)",
            "tell(str([[]] * 3)",
        ),
    ),
    "crash": (
        "{v}",
        (
            "ctypes.string_at(0)",
            "os.abort()",
            "(lambda: 0).__code__.replace(co_code=b'\\xff' * 99)",
            "ctypes.memset(id(1), 0, 99)",
        ),
    ),
    "leaving early": (
        "{v}",
        ("sys.exit(0)", "os._exit(0)", "raise SystemExit", "quit()", "os.execv('/bin/true', ['t'])"),
    ),
    "leaving late": (
        "import atexit\natexit.register({v})",
        ("lambda: os._exit(0)", "time.sleep, 10**6", "lambda: [os.fork() for _ in range(99)]"),
    ),
    "descriptors": (
        "{v}",
        (
            "os.closerange(0, 1000)",
            "[os.write(i, b'1' * 99) for i in range(3, 64) if os.fstat(i)]",
            "for i in range(64):\n    try:\n        os.write(i, b'1' * 99)\n    except OSError:\n        pass",
            "for i in range(3, 64):\n    try:\n        tell(os.read(i, 10**5).decode('latin1'))\n    except OSError:\n        pass",
        ),
    ),
    "limits": (
        "resource.setrlimit(resource.{v}, (resource.RLIM_INFINITY,) * 2)\nwhile True: pass",
        ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE"),
    ),
    "not a program": ("{v}", ("def f(", "\x00", "x = '\\ud800'; print(x)", "0" * 50_000, "(" * 500)),
    "secrets": (
        "tell(' '.join(os.environ.values()))\ntell({v})",
        ("os.environ['SOUP_SECRET']", "os.getenv('SOUP_SECRET')", "os.environb[b'SOUP_SECRET'].decode()"),
    ),
}

STDIN_ALONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "guessing": ("print({v})", ("''", "'7919 104729'", "open(0).read()", "'SECRET_' + 'IN'", "*range(1000)")),
    "told to be right": (
        "print({v})",
        ('\'{{"end": "", "output": "SECRET"}}\'', "'passed'", "'1' * 99", "'\\0' * 99", "'All tests passed'"),
    ),
}

ASSERT_ALONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "always equal": (
        "class A({v}):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    def __hash__(self): return 0\n    def __bool__(self): return True\ndef f(a, b): return A()",
        ("object", "int", "str", "float", "list", "dict", "tuple", "frozenset", "Exception"),
    ),
    "builtins": (
        "import builtins\n{v}\ndef f(a, b): return 0",
        (
            "builtins.AssertionError = type('E', (Exception,), {{}})",
            "builtins.int = builtins.str",
            "builtins.isinstance = lambda *a: True",
            "builtins.__import__ = lambda *a: None",
            "builtins.compile = builtins.exec = lambda *a, **k: None",
        ),
    ),
    "instead of an answer": (
        "def f(a, b):\n    {v}",
        (
            "raise SystemExit(0)",
            "raise KeyboardInterrupt",
            "raise AssertionError",
            "raise StopIteration",
            "os._exit(0)",
            "yield 7919",
            "return f",
            "return f(a, b)",
            "return (yield)",
            "return float('nan')",
            "return sys",
            "return [f] * 2",
            "return type(a)",
        ),
    ),
    "looking at the tests": (
        "import re\nask = 'ass' + 'ert f'\ndef look(text):\n    found = re.search(ask + r'.\\d+, \\d+. == (\\d+)', text)\n"
        "    return int(found[1]) if found else 0\ndef f(a, b):\n    {v}\n    return 0",
        (
            "frame = sys._getframe()\n    while frame:\n        if x := look(repr(frame.f_locals)): return x\n"
            "        frame = frame.f_back",
            "for o in gc.get_objects():\n        if type(o) in (list, dict) and (x := look(repr(o)[:10**5])): return x",
            "for m in list(sys.modules.values()):\n        if x := look(repr(vars(m))): return x",
            "return look(open('tests.py').read())",
            "import linecache; return look(''.join(linecache.getlines('tests.py')))",
            "for i in range(3, 64):\n        try: os.write(i, b'1' * 9)\n        except OSError: pass",
        ),
    ),
    "answering out of turn": (
        "import json, struct\ndef send(m):\n    d = json.dumps(m).encode()\n    os.write(4, struct.pack('I', len(d)) + d)\n"
        "for _ in range(9):\n    send({v})\nos._exit(0)",
        (
            "{{'value': ['plain', True]}}",
            "{{'value': ['handle', 0]}}",
            "{{'error': 'SystemExit', 'said': ''}}",
            "{{'error': 'AssertionError', 'said': ''}}",
            "{{'passed': [True, True], 'end': ''}}",
            "[]",
            "{{'value': ['set', [['list', []]]]}}",
            "{{'value': ['int', 'f' * 10**6]}}",
        ),
    ),
    "tracing": (
        "{v}\ndef f(a, b): return 0",
        (
            "sys.settrace(lambda *a: os._exit(0))",
            "sys.setprofile(lambda *a: sys.exit(0))",
            "threading.settrace(lambda *a: os._exit(0))",
            "sys.excepthook = lambda *a: os._exit(0)",
            "sys.displayhook = print",
        ),
    ),
    "deep data": (
        "def f(a, b):\n    x = {v}\n    for _ in range(10**5): x = [x]\n    return x",
        ("7919", "[]", "{{}}"),
    ),
}


def programs(world: World) -> Iterator[Program]:
    """All of them."""
    tables = ((STDIN, BOTH), (ASSERT, BOTH), (STDIN, STDIN_ALONE), (ASSERT, ASSERT_ALONE))
    for style, table in tables:
        tail = "\ndef f(a, b): return 0\n" if style == ASSERT and table is BOTH else "\n"
        for name, (template, variants) in table.items():
            for i, variant in enumerate(variants if table is not BOTH or style == STDIN else variants[:3]):
                filled = template.format(v=variant.format(**vars(world)), **vars(world))
                yield Program(f"{style}, {name}, {i}", style, f"{HEAD}{OBEY}{filled}{tail}")


def one_of_each(world: World) -> list[Program]:
    """The first of every family and style."""
    families = itertools.groupby(programs(world), key=lambda program: program.name.rpartition(",")[0])
    return [next(group) for _, group in families]
