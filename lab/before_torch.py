"""Imported before all else, for torch takes seconds to import and its threads read the environment then.

Ctrl-C in these seconds wants no traceback. And threads that wait for each other shall not hold a core for
long: several trainings on one CPU would take each other's time."""
import os
import sys

if "OMP_WAIT_POLICY" not in os.environ:  # turns of an empty loop before a waiting thread sleeps (GNU OpenMP)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
show = sys.excepthook


def show_errors(kind, error, trace):
    """Python's own words for every error that nobody has caught but Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nStopped before it began.", file=sys.stderr)
    else:
        show(kind, error, trace)


sys.excepthook = show_errors
