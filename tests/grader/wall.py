"""The second wall: what the system itself refuses to a process, whatever runs in it.

On Linux, as root or where ordinary users may have namespaces: a file system of its own that is in memory and
gone afterwards, in which Python and the copy can be read, /room can be written up to a limit, and nothing
else exists; no network, no processes but its own, no rights, the user nobody where root started it.
Elsewhere, and in containers that allow no namespaces: limits alone. Behind both a hook in Python refuses to
open files elsewhere and to start processes; who can call C functions gets past the hook, not past the
namespaces."""
import ctypes
import os
import signal
import sys
from pathlib import Path

from grader.problems import ROOT

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY = 2 << 30  # bytes that a process may take beyond what it starts with
FILES_SIZE = 64 << 20
NOBODY = 65534
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
NOSUID, NODEV, BIND, REC, PRIVATE, DETACH = 2, 4, 4096, 16384, 1 << 18, 2
MOUNT_SETATTR, RDONLY, RECURSIVE, HERE = 442, 1, 0x8000, -100
NO_NEW_PRIVS, CAPABILITIES_3 = 38, 0x20080522


def call(name, *args):
    """A function of the C library. Raises OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespaces():
    """What this process and those that it forks see of the system becomes their own. Raises OSError where
    that is not allowed."""
    if not sys.platform.startswith("linux"):
        raise OSError("there are no namespaces here")
    uid, gid = os.getuid(), os.getgid()
    new = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    call("unshare", new if uid == 0 else new | NEWUSER)
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def seen():
    """The folders and files outside that Python needs, those first that hold others; none of them is ours."""
    found = {"/usr", "/lib", "/lib64", "/dev/null", sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix)}
    found |= {os.path.realpath(p) for p in sys.path if "-packages" in p or p.startswith(sys.base_prefix)}
    found = {str(path) for path in map(Path, found) if path.exists() and not ROOT.is_relative_to(path)}
    inside = [path for path in found if not any(path != p and Path(path).is_relative_to(p) for p in found)]
    return sorted(inside)


def build(root, fill):
    """Make the empty folder `root` the root of this process's file system. fill(folder) puts into /work what
    is to be there. Raises OSError."""
    call("mount", b"none", b"/", None, REC | PRIVATE, None)
    size = f"size={FILES_SIZE},mode=755".encode()
    call("mount", b"tmpfs", root.encode(), b"tmpfs", NOSUID | NODEV, size)
    for path in seen():
        target = Path(root + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.islink(path):
            target.symlink_to(os.readlink(path))
            continue
        target.mkdir() if os.path.isdir(path) else target.touch()
        call("mount", path.encode(), str(target).encode(), None, BIND | REC, None)
    for name in ("work", "room"):
        Path(root, name).mkdir()
    fill(Path(root, "work"))
    read_only = (ctypes.c_uint64 * 4)(RDONLY, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, HERE, root.encode(), RECURSIVE, read_only, ctypes.sizeof(read_only))
    size = f"size={FILES_SIZE},mode=1777".encode()
    call("mount", b"tmpfs", f"{root}/room".encode(), b"tmpfs", NOSUID | NODEV, size)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/work")


def drop_rights():
    """Become nobody; in a namespace of an ordinary user give up what being root there allows."""
    if Path("/proc").exists():
        raise OSError("the old file system is still there")
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    except OSError:  # there is no other user in the namespace of an ordinary one
        call("capset", (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)())


def set_limits(seconds):
    """Memory, time of the processor, size of files, number of processes and open files."""
    if not resource:
        return
    wanted = {"RLIMIT_CPU": int(seconds) + 2, "RLIMIT_FSIZE": FILES_SIZE, "RLIMIT_CORE": 0,
              "RLIMIT_NOFILE": 128, "RLIMIT_NPROC": 0 if sys.platform.startswith("linux") else 512}
    if sys.platform.startswith("linux"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted["RLIMIT_AS"] = pages * resource.getpagesize() + MEMORY
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def watch(child, seconds):
    """Wait for a child, and end it when its time is over or when this process is told to end. Ending the
    first process of a namespace ends all others in it."""
    signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def behind_namespaces(root, fill, seconds):
    """Go on in a process behind the wall; the one before watches it and does not return. Raises OSError
    where there are no namespaces."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    enter_namespaces()
    child = os.fork()
    if child:
        watch(child, seconds)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.setsid()  # a signal to the own group (number 0, which is also the parent from in here) meets nobody
    set_limits(seconds)
    build(root, fill)
    drop_rights()


# ------------------------------------------------------------------------------------------------
# The hook
# ------------------------------------------------------------------------------------------------
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
            "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "sqlite3.connect")
OF_TWO_PATHS = ("os.rename", "os.link", "os.symlink")
NEVER = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
         "os.kill", "socket.", "ctypes.dlopen", "ctypes.dlsym", "signal.pthread_kill", "sys.setprofile",
         "sys.settrace", "mmap.")


def guard(work, room):
    """A hook for sys.addaudithook that refuses what graded code has no business with: reading our repository
    (an environment of Python's inside it excepted), writing anywhere but in `room`, starting processes,
    talking to others. work: the copy, which may be read."""
    ours, python = str(ROOT) + os.sep, os.path.realpath(sys.prefix) + os.sep
    null = os.path.realpath(os.devnull)

    def hook(event, args):
        if event.startswith(NEVER):
            raise PermissionError(f"graded code may not use {event}")
        if event != "open" and event not in CHANGING:
            return
        for path in args[: 2 if event in OF_TWO_PATHS else 1]:
            if isinstance(path, (str, bytes, os.PathLike)):
                path = os.path.realpath(os.fsdecode(path))
                changes = event != "open" or bool((args[2] or 0) & WRITING)
                is_ours = path.startswith(ours) and not path.startswith((python, work + os.sep))
                is_outside = not (path + os.sep).startswith(room + os.sep) and path != null
                if is_ours or (changes and is_outside):
                    raise PermissionError(f"graded code may not touch {path}")

    return hook
