"""read_without_vectors.py LAKE ANSWERS: readers that know no deletion vectors, on the tables of oracle.py's answers.

Prints JSON: reader -> table -> {version: digest}, or what the reader said when it refused.
"""

import json
import sys

import daft
from deltalake import DeltaTable

from canonical import digest_of

READERS = {
    "deltalake to pyarrow": lambda path, version: DeltaTable(path, version=version).to_pyarrow_table(),
    "daft": lambda path, version: daft.read_deltalake(path, version=version).to_arrow(),
}


def main():
    lake, answers = sys.argv[1:3]
    readings = {}
    for reader, read in READERS.items():
        readings[reader] = {}
        for name, answer in json.load(open(answers, encoding="utf-8")).items():
            try:
                found = {version: digest_of(read(f"{lake}/{name}", int(version))) for version in answer["versions"]}
            except Exception as refusal:
                found = str(refusal)
            readings[reader][name] = found
    print(json.dumps(readings))


main()
