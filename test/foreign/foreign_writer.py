"""Tries to maintain a table with the deltalake package. Prints, as JSON, what became of each attempt."""

import json
import sys

from deltalake import DeltaTable

table = DeltaTable(sys.argv[1])
attempts = {
    "optimize": lambda: table.optimize.compact(),
    "delete": lambda: table.delete(),
    "vacuum": lambda: table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True),
}
outcome = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcome[name] = "done"
    except Exception as error:
        outcome[name] = str(error)
print(json.dumps(outcome))
