"""Imported before all else: torch takes seconds to import, and Ctrl-C in them wants no traceback."""
import sys

show = sys.excepthook


def show_errors(kind, error, trace):
    """Python's own words for every error that nobody has caught but Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nStopped before it began.", file=sys.stderr)
    else:
        show(kind, error, trace)


sys.excepthook = show_errors
