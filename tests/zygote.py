"""A process that has imported torch once, and forks itself for each command that it is told.

`python -m autoseg` spends seconds on importing torch; a copy of this process starts in milliseconds
and can be killed as any other. It reads a JSON line with the command, its folder and the file for
what it says; it answers with the process id, or for a "wait" with the exit status.
"""

import contextlib
import importlib
import json
import os
import signal
import sys


def die_before(module: str, name: str, word: str, times: int) -> None:
    """Kill this process where a function is called so often with arguments that hold a word."""
    home = importlib.import_module(module)
    real, calls = getattr(home, name), []

    def counted(*args: object) -> object:
        calls.extend([word] * (word in repr(args)))
        if len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(home, name, counted)


def commanded() -> None:
    """Answer requests until the input ends; in a copy, return with the command in sys.argv."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(request["wait"], os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if done else None
                print(json.dumps(code), flush=True)
            continue
        process = os.fork()
        if process == 0:
            os.chdir(request["folder"])
            said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.argv = ["autoseg", *request["words"]]
            if request["dies"]:
                die_before(*request["dies"])
            return
        print(json.dumps(process), flush=True)
    raise SystemExit(0)


if __name__ == "__main__":
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torch._dynamo  # what making an optimiser imports

    import autoseg.flow.make
    import autoseg.report.curves
    import autoseg.report.text
    import autoseg.stages.evaluate
    import autoseg.stages.predict
    import autoseg.stages.preprocess
    import autoseg.stages.train  # noqa: F401
    from autoseg.cli import main

    torch.set_num_threads(1)
    commanded()
    sys.exit(main())
