# SPDX-License-Identifier: Apache-2.0
"""`python -m reco` is the command `reco`."""

from reco.cli import main

if __name__ == "__main__":
    main(prog_name="python -m reco")
