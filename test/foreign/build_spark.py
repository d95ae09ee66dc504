"""build_spark.py PROJECT RAW REFINED OUT MODELS: dbt on Spark builds the project's models over the raw tables in RAW.

MODELS is a JSON object: the folder of our table below REFINED by dbt's name of the model, and the model's columns. What
dbt has built becomes OUT/dbt/<name>, our own table OUT/ours/<name>, as Parquet. Exits with dbt's own words when it fails.
Run with the Python of the newer Spark; TEST_IVY is where its jars are kept.
"""

import gzip
import json
import os
import sys

os.environ["DBT_SEND_ANONYMOUS_USAGE_STATS"] = "false"
# Workers are started by name otherwise: another Python, without this one's packages.
os.environ["PYSPARK_PYTHON"] = sys.executable

from dbt.cli.main import dbtRunner
from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession
from from_protobuf import from_protobuf


def unpack(payload, compression):
    """What tributary_unpack names: NULL for bytes that do not unpack."""
    try:
        if compression == "GZIP":
            return gzip.decompress(payload)
        return zstd(payload) if compression == "ZSTD" else payload
    except Exception:
        return None


def zstd(payload):
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def session(out, project):
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": os.path.join(out, "warehouse"),
        "spark.jars.ivy": os.environ["TEST_IVY"],
    }
    builder = SparkSession.builder.master("local[2]").appName("models")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = configure_spark_with_delta_pip(builder).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    # The modules beside this one go with the functions, to Python's workers.
    spark.sparkContext.addPyFile(os.path.join(os.path.dirname(os.path.abspath(__file__)), "from_protobuf.py"))
    spark.udf.register("tributary_unpack", unpack, "binary")
    for name, payload in payloads_of(project).items():
        decode, kind = from_protobuf(bytes.fromhex(payload["descriptors"]), payload["message"])
        spark.udf.register("tributary_decode_" + name.replace(".", "_"), decode, kind)
    return spark


def payloads_of(project):
    """What `tributary models spark` wrote, which is JSON within a macro."""
    with open(os.path.join(project, "macros", "tributary_payloads.sql"), encoding="utf-8") as file:
        text = file.read()
    return json.loads(text[text.index("return({") + len("return(") : text.rindex("})") + 1])


def main():
    project, raw, refined, out, models = sys.argv[1:6]
    spark = session(out, project)
    variables = {
        "tributary_raw": raw,
        "tributary_unpack": "tributary_unpack",
        "tributary_decode": "tributary_decode_",
    }
    told = dbtRunner().invoke(
        [
            "run",
            "--no-use-colors",
            "--target=spark",
            f"--project-dir={project}",
            f"--profiles-dir={project}",
            f"--target-path={out}/target",
            f"--log-path={out}/logs",
            f"--vars={json.dumps(variables)}",
        ]
    )
    if not told.success:
        sys.exit(str(told.exception or [result.message for result in told.result if result.message]))
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    for name, model in json.loads(models).items():
        columns = ", ".join(f"`{column}`" for column in model["columns"])
        for whose, table in (("dbt", f"tributary.{name}"), ("ours", f"delta.`{refined}/{model['folder']}`")):
            spark.sql(f"SELECT {columns} FROM {table}").coalesce(1).write.parquet(f"{out}/{whose}/{name}")
    spark.stop()


main()
