"""`python -m flgo_hydra.report`."""

import sys

from flgo_hydra.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
