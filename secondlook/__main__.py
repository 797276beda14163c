"""`python -m secondlook` is the command line, as torchrun expects it."""

import sys

from secondlook.cli.app import main

sys.exit(main())
