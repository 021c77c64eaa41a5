"""The measured figures of the documentation are those of the raw numbers that are committed."""

import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import pages


def test_the_pages_say_what_the_raw_numbers_say():
    pages.main(["--check"])
