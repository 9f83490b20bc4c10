"""`python -m flgo_hydra`, and the console script `flgo-hydra`."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence


def main() -> None:
    """Runs the command line; exits with 0 only when every job has a result."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        from flgo_hydra.help import config_dirs, help_page

        print(help_page(config_dirs(arguments)))
        return
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from flgo_hydra import app, compose, explain

    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra then raises instead of printing and exiting: what is printed is decided here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    compose.prepare()
    try:
        hydra.main(**compose.hydra_main_arguments())(app.job)()
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\ninterrupted", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        logging.getLogger("flgo_hydra").debug("", exc_info=True)
        if wants_traceback:
            traceback.print_exc()
        print(f"error: {explain.explain(error, arguments)}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
