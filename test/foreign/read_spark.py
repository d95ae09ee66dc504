"""read_spark.py LAKE ANSWERS OUT: Spark reads the tables of oracle.py's answers, then tries to write to them.

OUT becomes a folder: parquet/<n> holds the rows of the n-th (table, version), told.json what else was found. Run with
the Python of a Spark release; TEST_IVY is where its jars are kept.
"""

import json
import os
import re
import sys

from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession


def session():
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        # Of the copy that is written here; the tables are read as Spark reads by default.
        "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": os.path.join(sys.argv[3], "warehouse"),
        "spark.jars.ivy": os.environ["TEST_IVY"],
    }
    builder = SparkSession.builder.master("local[2]").appName("foreign readers")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = configure_spark_with_delta_pip(builder).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    return spark


def main():
    lake, answers, out = sys.argv[1:4]
    spark = session()
    told = {"reads": [], "filters": {}, "bounds": {}, "times": {}, "attempts": {}}
    names = json.load(open(answers, encoding="utf-8"))
    for name, answer in names.items():
        table = f"delta.`{lake}/{name}`"
        for version in answer["versions"]:
            folder = os.path.join(out, "parquet", str(len(told["reads"])))
            spark.sql(f"SELECT * FROM {table} VERSION AS OF {version}").coalesce(1).write.parquet(folder)
            told["reads"].append([name, version])
        counts = []
        for at, probe in enumerate(answer["filters"]):
            value = f"timestamp_micros({probe['value']})" if probe["time"] else f"{probe['value']}L"
            counts.append(f"SELECT {at} AS at, count(*) AS n FROM {table} WHERE `{probe['column']}` = {value}")
        told["filters"][name] = [n for _, n in sorted(map(tuple, spark.sql(" UNION ALL ".join(counts)).collect()))]
        times = {probe["column"] for probe in answer["filters"] if probe["time"]}
        ends = [
            f"{'unix_micros' if column in times else ''}({end}(`{column}`))"
            for column in answer["bounds"]
            for end in ("min", "max")
        ]
        found = spark.sql(f"SELECT {', '.join(ends)} FROM {table}").first()
        told["bounds"][name] = {
            column: {"min": found[2 * at], "max": found[2 * at + 1]} for at, column in enumerate(answer["bounds"])
        }
        history = spark.sql(f"DESCRIBE HISTORY {table}").selectExpr("version", "unix_millis(timestamp)").orderBy("version")
        told["times"][name] = [time for _, time in history.collect()]

    def attempt(name, statement):
        label = f"{statement if isinstance(statement, str) else 'append'} on {name}"
        try:
            spark.sql(statement.format(f"delta.`{lake}/{name}`")).collect() if isinstance(statement, str) else statement(name)
            told["attempts"][label] = "done"
        except Exception as error:
            told["attempts"][label] = re.sub(r"\s+", " ", str(error))[:2000]

    def append(name):
        frame = spark.read.format("delta").load(f"{lake}/{name}").limit(1)
        frame.write.format("delta").mode("append").save(f"{lake}/{name}")

    for name in names:
        for statement in [
            "DELETE FROM {} WHERE tenant_id = 'acme'",
            "UPDATE {} SET tenant_id = 'x'",
            "OPTIMIZE {}",
            "REORG TABLE {} APPLY (PURGE)",
            "VACUUM {} RETAIN 0 HOURS",
            "ALTER TABLE {} SET TBLPROPERTIES ('delta.checkpointPolicy' = 'v2')",
            "RESTORE TABLE {} TO VERSION AS OF 1",
            append,
        ]:
            attempt(name, statement)
    spark.stop()
    with open(os.path.join(out, "told.json"), "w", encoding="utf-8") as file:
        json.dump(told, file)


main()
