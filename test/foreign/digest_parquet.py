"""digest_parquet.py FOLDER: the digests of the tables that read_spark.py has written, in their order, as JSON."""

import glob
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from canonical import digest_of

folders = sorted(glob.glob(glob.escape(sys.argv[1]) + "/*"), key=lambda name: int(os.path.basename(name)))
parts = [[pq.read_table(file) for file in glob.glob(glob.escape(folder) + "/*.parquet")] for folder in folders]
print(json.dumps([digest_of(pa.concat_tables(tables)) for tables in parts]))
