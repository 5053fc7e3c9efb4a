"""On the PYTHONPATH of test_startup.py's ranks: the folder for temporary files is $BLOCKED, which is a file."""

import os
import tempfile

tempfile.tempdir = os.environ["BLOCKED"]
