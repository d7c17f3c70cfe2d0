"""Makes the library that draws the report's charts: Vega, Vega-Lite and Vega-Embed as one script.

    python tools/report_scripts.py [FILE]     # `make report-scripts`; FILE: where, if not into the package

vl-convert carries the libraries and bundles them without a network, so that the same release always makes the same
script; a test compares it with the one in the package. It is a requirement of tests alone: the operator only reads the
result.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

VEGA_LITE = "6.4"
PLACE = Path(__file__).resolve().parents[1] / "operator/study_operator/report/vega.js.gz"


def bundle() -> str:
    """Return the script: a function of its own, which leaves `vegaEmbed` behind and nothing else."""
    import vl_convert

    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return f'(() => {{\n"use strict";\n{library}\n}})();\n'


def main() -> int:
    """Write the script, compressed."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    place.write_bytes(gzip.compress(bundle().encode(), compresslevel=9, mtime=0))
    print(f"{place}: {place.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
