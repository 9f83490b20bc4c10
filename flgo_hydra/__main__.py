"""`python -m flgo_hydra`, and the console script `flgo-hydra`."""

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from flgo_hydra.flags import name_and_value
from flgo_hydra.importing import without_garbage_collection
from flgo_hydra.launch.processes import server_process
from flgo_hydra.launch.scheduling.host import num_cores
from flgo_hydra.overrides import Override, texts_of
from flgo_hydra.record.secrets import masked
from flgo_hydra.streams import keep_going, tell_error, whole

_GRID_FLAGS = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
_SHOWING_FLAGS = {"--cfg", "-c", "--info", "-i", "--version", "--hydra-help", "--shell-completion", "-sc"}


def main() -> None:
    """Runs the command line; exits with 0 only when every job has a result."""
    keep_going()
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        status = whole(_help(arguments))
        if status:
            sys.exit(status)
        return
    try:
        status = _run(arguments)
    except KeyboardInterrupt:  # before there was anything to stop: while it imports
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except SystemExit as stop:  # argparse's, or a sweep that is not whole
        if not isinstance(stop.code, int | None):
            raise
        status = stop.code or 0
    _leave(whole(status) if _only_shows(arguments) else status)


def _help(arguments: Sequence[str]) -> int:
    """Prints the help page, of what the overrides compose to where there are any; returns the exit status."""
    from flgo_hydra.help import config_dirs, help_page

    composed = None
    if any(Override.read(text).is_set and not text.startswith("-") for text in arguments):
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from flgo_hydra import compose, explain

        compose.prepare()
        try:
            composed = explain.composed(arguments)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return tell_error(explain.explain(error, arguments))
    print(masked(help_page(config_dirs(arguments), composed=composed)))
    return 0


def _leave(status: int) -> None:
    """Ends the process as the interpreter would, but for tearing modules down: with torch that takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    os._exit(status)


def _run(arguments: Sequence[str]) -> int:
    if _starts_grid(arguments):
        # It imports torch on another core while this process composes and checks the grid.
        server_process.start_early(
            server_process.PRELOAD,
            ["flgo_hydra.launch.processes.worker:prepare", "flgo_hydra.app:preload"],
            _expected_threads(arguments, num_cores()),
        )
    with without_garbage_collection():
        import hydra
        from hydra._internal.utils import get_args_parser as hydra_flags
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from flgo_hydra import app, compose, explain, flags, machine_errors
        from flgo_hydra.help import typed_keys
        from flgo_hydra.record.log_trouble import told_once

    try:
        arguments = flags.in_order(arguments, hydra_flags(), typed_keys())
        explain.refuse_early(arguments)
    except ValueError as error:
        return tell_error(str(error))
    sys.argv[1:] = arguments
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then raises instead of printing and exiting: what is printed is decided here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    compose.prepare()
    try:
        with told_once():
            hydra.main(**compose.hydra_main_arguments())(app.job)()
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\ninterrupted", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        logging.getLogger("flgo_hydra").debug("", exc_info=True)
        if wants_traceback:
            _print_traceback()
        return tell_error(str(machine_errors.refused_by_storage(error) or explain.explain(error, arguments)))
    except Exception as error:
        refused = machine_errors.refused_by_storage(error)
        if refused is None:
            said = explain.of_overflow(error) or explain.of_plugin(error, arguments) or machine_errors.in_words(error)
        else:
            said = str(refused)
        if said is not None and not wants_traceback:
            return tell_error(said)
        _print_traceback()
        return 1
    return 0


def _print_traceback() -> None:
    print(masked(traceback.format_exc()), end="", file=sys.stderr)


def _starts_grid(arguments: Sequence[str]) -> bool:
    """True for a command that will most likely start jobs with our launcher."""
    is_grid = not _GRID_FLAGS.isdisjoint(arguments)
    other_launcher = texts_of(arguments).get("hydra/launcher", "flgo_hydra") != "flgo_hydra"
    return is_grid and not _only_shows(arguments) and not other_launcher


def _only_shows(arguments: Sequence[str]) -> bool:
    """Whether a command's product is what it prints."""
    return any(name_and_value(text)[0] in _SHOWING_FLAGS for text in arguments)


def _expected_threads(arguments: Sequence[str], cores: int) -> int:
    """Threads of a job, if there is no GPU; a guess that is wrong costs the server that was started early."""
    given = {key: int(text) for key, text in texts_of(arguments).items() if text.isdecimal()}
    threads, slots = given.get("hydra.launcher.threads"), given.get("hydra.launcher.slots")
    return max(1, threads or cores // (slots or cores))


if __name__ == "__main__":
    main()
