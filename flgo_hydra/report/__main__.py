"""`python -m flgo_hydra.report`."""

import sys

from flgo_hydra.report.command import main
from flgo_hydra.streams import wholly

if __name__ == "__main__":
    sys.exit(wholly(lambda: main(sys.argv[1:])))
