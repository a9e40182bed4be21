"""`python -m mlprod.etl --config FILE`: the verb `etl`."""

import sys

from mlprod import cli

if __name__ == "__main__":  # processes that take tasks import this module too
    sys.exit(cli.main(["etl", *sys.argv[1:]]))
