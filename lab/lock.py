"""One process at a time makes a stage of a run. The operating system lets go of a lock when its process ends,
however it ends; the file goes too, unless the process is killed."""
import atexit
import contextlib
import os

from data import UserError
from lab import parallel

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

held = {}  # {path: open file} of this process, which may take a lock again: parents are trained inside it


def take(folder, name, wait=False):
    """Raises UserError where another process is at the stage `name` of a run folder, or waits for it. Of
    several processes that train together the first one takes it."""
    path = (folder / f".{name}.lock").resolve()
    if fcntl is None or path in held or not parallel.is_first():
        return
    while True:
        file = opened(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise UserError(f"another process is at {folder / name} at this moment: wait for it, or give "
                            "yours a --name of its own") from None
        with contextlib.suppress(FileNotFoundError):  # whoever had it has just removed it
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                held[path] = file
                atexit.register(release, folder, name)
                return
        file.close()


def opened(path, tries=100):
    """The file of a lock. Its folder is made, again where whoever left it empty has just removed it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")  # which does not wait for the other end of a pipe
    except (FileNotFoundError, FileExistsError):
        if not tries:  # something else is wrong
            raise
        return opened(path, tries - 1)


def release(folder, name):
    """Let others in; the file goes while it is still held."""
    path = (folder / f".{name}.lock").resolve()
    if path in held:
        path.unlink(missing_ok=True)
        held.pop(path).close()


@contextlib.contextmanager
def alone(folder, name):
    """One process after the other; each waits for the one before. Folders that stay empty go."""
    take(folder, name, wait=True)
    try:
        yield
    finally:
        release(folder, name)
        with contextlib.suppress(OSError):
            os.removedirs(folder)
