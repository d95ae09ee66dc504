"""digest_tenants.py FOLDER: of the tables build_spark.py has written, digests of each column, with the keys, by tenant.

JSON: table -> "dbt" and "ours" -> tenant -> column -> {"rows", "digest"}.
"""

import glob
import json
import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from canonical import digest_of

KEYS = ["tenant_id", "entity_id"]


def one_zero(column):
    """DuckDB writes the zeros of a column chunk's dictionary as one of them, with the sign of the first."""
    return pc.add(column, 0.0) if pa.types.is_floating(column.type) else column


def digests(folder):
    table = pa.concat_tables([pq.read_table(file) for file in sorted(glob.glob(glob.escape(folder) + "/*.parquet"))])
    table = pa.table({name: one_zero(table.column(name)) for name in table.column_names})
    told = {}
    for tenant in sorted(table.column("tenant_id").unique().to_pylist()):
        rows = table.filter(pc.equal(table.column("tenant_id"), tenant))
        others = [name for name in rows.column_names if name not in KEYS]
        told[tenant] = {name: digest_of(rows.select([*KEYS, name])) for name in others}
    return told


names = sorted(os.listdir(os.path.join(sys.argv[1], "ours")))
print(json.dumps({n: {whose: digests(os.path.join(sys.argv[1], whose, n)) for whose in ("dbt", "ours")} for n in names}))
