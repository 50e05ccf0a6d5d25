"""Has a result, starts a program that outlives it, and does not end."""

import json
import subprocess
import sys
import time
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text(json.dumps({"results": [{"what": "child", "pid": child.pid}]}))
time.sleep(600)
