"""What submissions might try: each is the body of `whiten`, problem 8, or what stands in front of it as well.
OUTSIDE is a folder that is not the copy's, ROOT this repository, PORT one on which somebody listens."""
from typing import NamedTuple


class Attack(NamedTuple):
    kind: str
    name: str
    body: str  # of whiten(x, mask, shift_mean=True)
    top: str = ""  # in front of it

    def text(self, outside, root, port):
        """The student's file."""
        lines = [f"OUTSIDE, ROOT, PORT = {str(outside)!r}, {str(root)!r}, {port}", *self.body.split("; ")]
        body = "\n".join("    " + line for line in lines)
        return f"{self.top}\n\ndef whiten(x, mask, shift_mean=True):\n{body}\n"


def of(kind, attacks):
    return [Attack(kind, name, *([body] if isinstance(body, str) else body))
            for name, body in attacks.items()]


TELL = "raise ValueError(str(told))"  # the failure message is the way out
FILES = of("files", {
    "empty a folder": "import shutil; shutil.rmtree(OUTSIDE, ignore_errors=True)",
    "write a file": "open(OUTSIDE + '/new', 'w').write('x')",
    "remove a file": "import os; os.remove(OUTSIDE + '/secret')",
    "remove with a Path": "import pathlib; pathlib.Path(OUTSIDE, 'secret').unlink()",
    "torch.save": "torch.save(x, OUTSIDE + '/x.pt')",
    "torch.from_file, to write": "torch.from_file(OUTSIDE + '/secret', shared=True, size=2).fill_(7)",
    "sqlite": "import sqlite3; sqlite3.connect(OUTSIDE + '/db').execute('create table t (x)')",
    "creat of C": "import ctypes; ctypes.CDLL(None).creat((OUTSIDE + '/c').encode(), 420)",
    "unlink of C": "import ctypes; ctypes.CDLL(None).unlink((OUTSIDE + '/secret').encode())",
    "dir_fd": "import os; os.unlink('secret', dir_fd=os.open(OUTSIDE, os.O_RDONLY))",
    "dir_fd of the root": "import os; os.unlink(OUTSIDE[1:] + '/secret', dir_fd=os.open('/', os.O_RDONLY))",
    "a link out of the copy": "import os; os.symlink(OUTSIDE, 'out'); open('out/new', 'w').write('x')",
    "rename": "import os; os.rename(OUTSIDE + '/secret', OUTSIDE + '/moved')",
    "truncate": "import os; os.truncate(OUTSIDE + '/secret', 0)",
    "chmod": "import os; os.chmod(OUTSIDE, 0)",
    "a hard link": "import os; os.link(OUTSIDE + '/secret', OUTSIDE + '/again')",
    "numpy": "x.numpy().tofile(OUTSIDE + '/x')",
    "a temporary file": "import tempfile; tempfile.mkstemp(dir=OUTSIDE)",
    "copy a solution": "import shutil; shutil.copy(ROOT + '/train_ppo.py', OUTSIDE)",
    "a log": "import logging; logging.FileHandler(OUTSIDE + '/log')",
    "a pipe with a name": "import os; os.mkfifo(OUTSIDE + '/fifo')",
    "an archive": "import zipfile; zipfile.ZipFile(OUTSIDE + '/z', 'w').writestr('a', 'b')",
    "mount again, to write": "import ctypes; ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None); "
                             "open(OUTSIDE + '/new', 'w').write('x')",
    "out of the root": "import os; os.mkdir('/room/x'); os.chroot('/room/x'); os.chdir('../../../..'); "
                       "open(OUTSIDE[1:] + '/new', 'w').write('x')",
    "site-packages": "import torch; open(torch.__file__, 'a').write('import os')",
    "Python's own files": "import os; open(os.__file__, 'a').write('')",
    "the tests of the copy":
        "open('tests/test_train_ppo.py', 'w').write('def test_whitening_by_hand(): pass')",
})
SECRETS = of("secrets", {
    "read a file": f"told = open(OUTSIDE + '/secret').read(); {TELL}",
    "read the solution": f"told = open(ROOT + '/train_ppo.py').read()[-9000:]; {TELL}",
    "dir_fd, to read": "import os; f = os.open('secret', os.O_RDONLY, dir_fd=os.open(OUTSIDE, os.O_RDONLY)); "
                       f"told = os.read(f, 99); {TELL}",
    "torch.from_file, to read":
        f"told = bytes(torch.from_file(OUTSIDE + '/secret', size=9, dtype=torch.uint8)); {TELL}",
    "open of C": "import ctypes; c = ctypes.CDLL(None); b = ctypes.create_string_buffer(99); "
                 f"c.read(c.open((OUTSIDE + '/secret').encode(), 0), b, 99); told = b.value; {TELL}",
    "linecache": f"import linecache; told = linecache.getlines(OUTSIDE + '/secret'); {TELL}",
    "memory of the grader": f"told = open('/proc/1/root' + OUTSIDE + '/secret').read(); {TELL}",
    "environment": f"import os; told = dict(os.environ); {TELL}",
    "environment as it was": f"told = open('/proc/self/environ').read(); {TELL}",
    "environment of C": "import ctypes; f = ctypes.CDLL(None).getenv; f.restype = ctypes.c_char_p; "
                        f"told = f(b'GRADER_SECRET'); {TELL}",
    "format": f"told = '{{0.os.environ}}'.format(torch); {TELL}",
    "a class pattern": ("match torch:\n        case object(os=m):\n            raise ValueError(m.environ)"),
})
VERDICT = of("verdict", {
    "replace runtest": "import _pytest.python; _pytest.python.Function.runtest = lambda self: None",
    "replace runtest from the top of the file": (
        "return x", "import _pytest.python\n_pytest.python.Function.runtest = lambda self: None"),
    "skip": "import pytest; pytest.skip('no')",
    "expect to fail": "import pytest; pytest.xfail('no')",
    "SkipTest": "import unittest; raise unittest.SkipTest",
    "replace allclose": "torch.allclose = lambda *a, **k: True; return x",
    "replace comparisons": "torch.Tensor.__eq__ = lambda *a: True; return x",
    "replace all tests":
        "import sys; [setattr(m, n, lambda *a, **k: None) for m in list(sys.modules.values()) "
                         "if m.__name__.startswith('test_') for n in dir(m) if n.startswith('test_')]",
    "equal to everything": ("return Yes()", "class Yes:\n    __eq__ = lambda *a: True\n"
                            "    __getattr__ = lambda self, name: lambda *a, **k: self"),
    "equal to everything, without class": "return type('Yes', (), {'__eq__': lambda *a: True})()",
    "mock": "from unittest import mock; return mock.ANY",
    "a tensor with laws of its own": (
        "return x.as_subclass(Yes)", "class Yes(torch.Tensor):\n    @classmethod\n"
        "    def __torch_function__(cls, *a, **k):\n        return True"),
    "read what is expected": "import inspect; return inspect.currentframe().f_back.f_locals['expected']",
    "read it off a traceback": "try:\n        1 / 0\n    except ZeroDivisionError as e:\n"
                               "        return e.__traceback__.tb_frame.f_back.f_locals['expected']",
    "another assert": "import builtins; builtins.AssertionError = StopIteration",
    "another all": "import builtins; builtins.all = lambda *a: True; return x",
    "end early": "import os; os._exit(0)",
    "exit": "raise SystemExit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "at the end": "import atexit, os; atexit.register(os._exit, 0)",
    "find the messenger":
        "import gc; [o.tell('tests/test_train_ppo.py::test_whitening_by_hand', None) for o in "
                          "gc.get_objects() if type(o).__name__ == 'Ears']; import os; os._exit(0)",
    "set by a helper of the library":
        "import functools; functools.update_wrapper(torch, x, ('allclose',), ())",
    "all classes there are":
        "return [c for c in ().__class__.__base__.__subclasses__() if 'Popen' in str(c)]",
    "names in another alphabet": "\uff4f\uff50\uff45\uff4e(OUTSIDE + '/new', 'w').write('x')",
    "a decorator": ("return x", "@exec('import os')\ndef help_me(): pass\nwhite = help_me"),
    "a default value": ("return f()", "def f(x=__import__('os').system('true')): return x"),
    "hook into pytest":
        "import gc; from _pytest.config import Config; [setattr(o.hook, 'pytest_runtest_call', "
                        "lambda **k: None) for o in gc.get_objects() if isinstance(o, Config)]",
})
PIPE = of("pipe", {
    "nonsense into every file": "import os; [os.write(n, b'nonsense' * 9) for n in range(3, 20) if ok(n)]",
    "half a message, then nothing": "import os, time; any(w(n) for n in range(3, 20)); time.sleep(99)",
    "a flood": "import os; [w(n, b'x' * 4000000) for n in range(3, 20)]",
    "a pickle": "import os, pickle; [w(n, pickle.dumps(print)) for n in range(3, 20)]",
    "a forged message": "[w(n, b'[\"\", \"tests/test_train_ppo.py::test_whitening_by_hand\", null]\\n') "
                        "for n in range(3, 20)]",
    "deep JSON": "[w(n, b'[' * 100000 + b'\\n') for n in range(3, 20)]",
    "close everything": "import os; os.closerange(0, 99)",
})
HELP = """import os, stat
def ok(n):
    try:
        return stat.S_ISSOCK(os.fstat(n).st_mode)
    except OSError:
        return False
def w(n, what=b'\\x00\\x00\\x10\\x00half'):
    return ok(n) and os.write(n, what) and False"""
PIPE = [attack._replace(top=HELP) for attack in PIPE]
RESOURCES = of("resources", {
    "tensors": "kept = [torch.ones(1 << 28) for _ in range(99)]",
    "lists": "kept = [0] * (1 << 33)",
    "a number": "return 10 ** 10 ** 10",
    "for ever": "while True: pass",
    "for ever at the top": ("return x", "while True:\n    pass"),
    "sleep": "import time; time.sleep(10 ** 6)",
    "deaf and for ever": "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; "
                         "while True: pass",
    "many threads": "import threading, time; [threading.Thread(target=time.sleep, args=[99]).start() "
                    "for _ in range(9999)]",
    "fork": "import os; [os.fork() for _ in range(20)]",
    "fork of C": "import ctypes; [ctypes.CDLL(None).fork() for _ in range(20)]",
    "a program": "import subprocess; subprocess.run(['touch', OUTSIDE + '/new'])",
    "a shell": "import os; os.system('touch ' + OUTSIDE + '/new')",
    "a program of C": "import ctypes; ctypes.CDLL(None).system(('touch ' + OUTSIDE + '/new').encode())",
    "multiprocessing":
        "import multiprocessing; multiprocessing.get_context('fork').Process(target=print).start()",
    "kill the grader": "import os; os.kill(os.getppid(), 9)",
    "kill everybody of C": "import ctypes; ctypes.CDLL(None).kill(-1, 15)",
    "fill the disk": "f = open('/room/big', 'wb')\n    while True:\n        f.write(bytes(1 << 20))",
    "compile": "return torch.compile(lambda x: x)(x)",
})
NETWORK = of("network", {
    "connect": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "the web": "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1)",
    "UDP": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT))",
    "socket of C": "import ctypes, struct; c = ctypes.CDLL(None); s = c.socket(2, 1, 0); "
                   "n = (PORT >> 8) | (PORT & 255) << 8; "
                   "c.connect(s, struct.pack('<HH4s8x', 2, n, bytes([127, 0, 0, 1])), 16)",
    "listen": "import socket; socket.create_server(('', 0))",
})
ATTACKS = FILES + SECRETS + VERDICT + PIPE + RESOURCES + NETWORK
