"""The terminal: text of others is made visible, and a reader or a terminal that goes away stops nothing."""
import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import threading

# What could move the cursor, clear the screen or turn text round: controls but tab and line end, DEL, C1,
# line and paragraph separators, marks and overrides of direction, halves of a character.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
OWN_STYLES = r"\x1b\[(?:0|1|31|32|33)m"  # bold, red, green, yellow and their end
OWN_BAR = r"\r|\x1b\[A"  # a progress bar draws itself anew


def visible(text):
    """Text whose control characters are written out, such as \\x1b; it is safe to print."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_but(own, text):
    """The same; what `own`, a pattern with one group, matches stays as it is."""
    parts = re.split(own, text)
    parts[::2] = map(visible, parts[::2])
    return "".join(parts)


def terminal_width():
    """Columns to print in: those of the terminal or of COLUMNS, at most 100, and 100 where there is none."""
    return max(40, min(100, shutil.get_terminal_size((100, 24)).columns))


def wrapped(text, indent="", width=None):
    """Text in lines of the terminal's width; lines after the first of a paragraph begin with `indent`."""
    width = width or terminal_width()
    return "\n".join(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
                     for line in visible(text).split("\n"))


def colors(stream=None):
    """Whether bold and colors are wanted: on a terminal that knows them, unless NO_COLOR is set."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Screen:
    """A stream that shows text as `visible` does. Where its reader has gone (`| head`) it goes on silently,
    so that a training reaches its checkpoint."""

    def __init__(self, stream, bar=False):
        self.stream = stream
        own = [OWN_STYLES] if colors(stream) else []
        self.own = "(" + "|".join(own + [OWN_BAR] * bar) + ")" if own or bar else None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        with self.reader_may_be_gone():
            self.stream.write(visible_but(self.own, text) if self.own else visible(text))
        return len(text)

    def flush(self):
        with self.reader_may_be_gone():
            self.stream.flush()

    @contextlib.contextmanager
    def reader_may_be_gone(self):
        try:
            yield
        except OSError:  # a closed pipe, or a terminal that was hung up
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def screens():
    """What a command prints goes through a Screen each; streams that were closed (`>&-`) are those of
    nothing. A command that is ended from outside (kill, a terminal that is closed) leaves without a word."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115  (as long as the process)
    out, err = (stream or open(os.devnull, "w", encoding="utf-8") for stream in before[1:])  # noqa: SIM115
    for stream in (sys.stdin, out, err):
        if hasattr(stream, "reconfigure"):  # what cannot be shown or read stops nobody
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    sys.stdout, sys.stderr = Screen(out), Screen(err, bar=True)
    handlers = leave_when_told()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.stdin, sys.stdout, sys.stderr = before


def leave_when_told():
    """SIGTERM and SIGHUP end the process as an exit does, with 128 + their number. Returns the handlers of
    before; a signal that is ignored (nohup) stays so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    return {number: signal.signal(number, lambda n, frame: sys.exit(128 + n)) for number in numbers}
