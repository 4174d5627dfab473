"""Starts the command ``fedclock``, before anything else of ours is imported.

What the surroundings of a command can do to it at any instant is answered here: Ctrl-C, an output
that cannot be written, too few file handles, another project's packages before ours. Each ends the
command with one sentence and an exit code, never with a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")

INTERRUPTED, ENDED, MISTAKEN = 130, 143, 2
"""Exit codes: after Ctrl-C and SIGTERM (as shells have them), and where the user can mend it."""

INTERRUPTED_WORDS = "interrupted: the same command goes on from here"

MIN_FILE_HANDLES = 64
"""The files that a process must be able to open: the libraries of a command open some tens."""

ASK_AGAIN_S = 0.02

SAME_INTERRUPT_S = 1.0
"""The seconds within which a second signal counts as the first: ``timeout`` sends it twice."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if sys.platform == "win32":  # Windows lacks signals, timers and locks that are used below
        sys.exit(_refused("FedClock needs Linux or macOS, or WSL 2 on Windows"))
    interrupts = _Interrupts()
    interrupts.install()
    code: str | int | None = 0
    try:
        _prepare_output()
        _check_file_handles()
        _check_packages()
        from analysis.commands.main import main as run

        interrupts.command_runs = True
        run()
    except SystemExit as ended:
        code = ended.code
    except OSError as error:
        code = _refused(f"the system refused what the command needs: {_reason(error)}")
    except BaseException:
        if not interrupts.came:
            raise
        code = interrupts.code
    interrupts.ignore()  # the rest is done in no time
    if interrupts.came and code:  # a library may have turned the interrupt into its own error
        _say(INTERRUPTED_WORDS)
        code = interrupts.code
    sys.exit(_written(code))


class _Interrupts:
    """Interrupts handles Ctrl-C (SIGINT) and SIGTERM from the command's first line to its last.

    ``timeout``, a batch system or a shutdown ends a command by SIGTERM. Either signal lets the
    command remove what it has written by half.

    Until the command runs there is nothing to clean up, and the process ends at once. From then on
    KeyboardInterrupt is raised, but not in the middle of an import: extension modules turn it into
    errors of their own there, and libraries catch those and go on. The same holds where Python
    cannot pass an exception on, as in a destructor. There the signal comes again a little later.
    A second signal ends the command at once, without waiting for it to clean up.
    """

    def __init__(self) -> None:
        self.came = self.command_runs = False
        self.code = INTERRUPTED
        self._raised_at_s: float | None = None

    def install(self) -> None:
        """Answer the signals, unless whoever started this process has them ignored."""
        signal.signal(signal.SIGALRM, self._answer)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._answer)
        sys.unraisablehook = self._not_raised

    def ignore(self) -> None:
        """Stop answering the signals, since the command has ended."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if number != signal.SIGALRM:
            self.code = ENDED if number == signal.SIGTERM else INTERRUPTED
        if not self.command_runs or self._is_second():
            with suppress(OSError):
                os.write(2, f"{INTERRUPTED_WORDS}\n".encode())
            os._exit(self.code)
        if self._raised_at_s is not None:
            return
        if _is_importing(frame):
            self._ask_again()
        else:
            self._raised_at_s = time.monotonic()
            raise KeyboardInterrupt

    def _is_second(self) -> bool:
        raised_at_s = self._raised_at_s
        return raised_at_s is not None and time.monotonic() - raised_at_s > SAME_INTERRUPT_S

    def _ask_again(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, ASK_AGAIN_S)

    def _not_raised(self, what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            self._raised_at_s = None
            self._ask_again()
        else:
            sys.__unraisablehook__(what)


def _is_importing(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _prepare_output() -> None:
    """Make output take any character; a closed one is replaced by none at all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _check_file_handles() -> None:
    """Raise the limit where it is too low for any command, and refuse where it cannot be raised."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_FILE_HANDLES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_FILE_HANDLES, hard))
        except (ValueError, OSError):
            sys.exit(
                _refused(
                    f"a process must be allowed {MIN_FILE_HANDLES} open files at least, got {soft} "
                    f"(ulimit -n); raise it with: ulimit -n {16 * MIN_FILE_HANDLES}"
                )
            )


def _check_packages() -> None:
    """Refuse to start where another project's package of a common name would be imported."""
    import importlib.util
    from pathlib import Path

    home = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            sys.exit(
                f"fedclock: the package {name!r} must be FedClock's own ({home / name}), got "
                f"{origin}; install FedClock in a virtual environment of its own"
            )


def _written(code: str | int | None) -> str | int | None:
    """Write out what is still to be written, and return the exit code after it.

    A reader that has gone (``| head -1``) is told nothing; the code says that it did not get all.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python writes what is still buffered at exit, which must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return code or 1
        return code or _refused(f"the output must be written, but: {_reason(error)}")
    return code


def _reason(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    advice = "; raise the limit (ulimit -n)" if error.errno == errno.EMFILE else ""
    return f"{error.strerror or error}{place}{advice}"


def _refused(message: str) -> int:
    _say(f"error: {message}")
    return MISTAKEN


def _say(line: str) -> None:
    with suppress(OSError):  # standard error may be closed
        print(line, file=sys.stderr, flush=True)
