"""Has a result and a failure, then ends with an error."""

import json
import sys
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text(json.dumps({"results": [{"what": "first"}, {"what": "second", "failure": "too large"}]}))
raise RuntimeError("out of memory")
