"""`python -m mlprod.etl --config FILE`: the verb `etl`."""

import sys

from mlprod import cli

sys.exit(cli.main(["etl", *sys.argv[1:]]))
