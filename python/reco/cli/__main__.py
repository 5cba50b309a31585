# SPDX-License-Identifier: Apache-2.0
"""`python -m reco.cli` is the command `reco`."""

from reco.cli import main

main()
