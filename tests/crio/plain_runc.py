"""runc for a host whose root may not lower the score by which the kernel chooses whom to kill.

CRI-O asks that for sandbox containers, and knows no way to do without; so here they keep their caller's.
Called as runc is: ``plain_runc.py RUNC ARGUMENT...``.
"""

import json
import os
import sys
from pathlib import Path

arguments = sys.argv[1:]
if "create" in arguments and "--bundle" in arguments:
    file = Path(arguments[arguments.index("--bundle") + 1], "config.json")
    config = json.loads(file.read_text())
    own = int(Path("/proc/self/oom_score_adj").read_text())
    config["process"]["oomScoreAdj"] = max(own, config["process"].get("oomScoreAdj") or 0)
    file.write_text(json.dumps(config))
os.execv(arguments[0], arguments)
