"""Python imports this at the start of every process that has the folder on PYTHONPATH: all of a supervised run, vLLM's
engine included, which nobody else could reach. On SIGUSR2 the process writes the stack of each of its threads to the
file SOUP_STACKS. The handler is plain C: it answers from within C code that never comes back to Python.
"""

import contextlib
import faulthandler
import importlib.machinery
import importlib.util
import os
import signal
import sys

with contextlib.suppress(OSError, KeyError):  # on another node there is no such file
    # Never closed, and forked processes inherit it.
    answers = os.open(os.environ["SOUP_STACKS"], os.O_WRONLY | os.O_APPEND)
    faulthandler.register(signal.SIGUSR2, file=answers, all_threads=True)

# The environment's own module of this name has its turn.
elsewhere = [folder for folder in sys.path if folder != os.path.dirname(__file__)]
if (own := importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)) and own.loader:
    own.loader.exec_module(importlib.util.module_from_spec(own))
