"""bulk_spark.py SOURCE FORMAT SCHEMA OUT [ENDPOINT]: Spark brings an export into two Delta tables; prints what it took.

SOURCE is the folder of the export, of FORMAT parquet or ndjson, whose columns SCHEMA tells (DDL); OUT is where the tables
go. ENDPOINT is that of S3, where both lie there. Run with the Python of Spark 3.5; TEST_IVY is where its jars are kept.
Output: a line of JSON with seconds and CPU seconds, from the first statement to the last commit, and the rows of both
tables.
"""

import json
import os
import sys
import time

from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as f

S3A = "org.apache.hadoop:hadoop-aws:3.3.4"


def session(endpoint, temporary):
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "16",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.hadoop.parquet.compression.codec.zstd.level": "1",
        "spark.local.dir": temporary,
        "spark.driver.memory": "6g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.jars.ivy": os.environ["TEST_IVY"],
    }
    if endpoint is not None:
        settings |= {
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.endpoint.region": os.environ["AWS_REGION"],
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            # Posix gateways fail to delete what stands for the folders above a file, and S3A would try for long.
            "spark.hadoop.fs.s3a.directory.marker.retention": "keep",
            "spark.hadoop.fs.s3a.multiobjectdelete.enable": "false",
            "spark.hadoop.fs.s3a.attempts.maximum": "3",
            "spark.hadoop.fs.s3a.aws.credentials.provider": "com.amazonaws.auth.EnvironmentVariableCredentialsProvider",
        }
    builder = SparkSession.builder.master("local[2]").appName("bulk")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = configure_spark_with_delta_pip(builder, extra_packages=[S3A]).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    return spark


def cpu_seconds(pid):
    """Of Java, which Python does not wait for."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    source, kind, schema, out = sys.argv[1:5]
    spark = session(sys.argv[5] if len(sys.argv) > 5 else None, os.environ["TEST_SPARK_FOLDER"])
    reader = spark.read.schema(schema)
    if kind == "parquet":
        rows = reader.parquet(source)
    else:
        rows = reader.option("timestampFormat", "yyyy-MM-dd HH:mm:ss[.SSSSSS]X").json(source)
    fields = [name for name in rows.columns if name not in ("customer", "id", "rev")]
    java = spark._jvm.java.lang.ProcessHandle.current().pid()
    began, cpu = time.monotonic(), cpu_seconds(java)
    raw = rows.select(
        f.col("customer").alias("tenant_id"),
        f.lit("tracker.v1.Issue").alias("entity_type"),
        f.col("id").alias("entity_id"),
        f.lit("CREATED").alias("operation"),
        f.col("rev").cast("bigint").alias("version"),
        f.col("updated_at").alias("occurred_at"),
        f.to_json(f.struct(*fields)).cast("binary").alias("payload"),
        f.lit("bootstrap").alias("stream"),
        f.lit("0").alias("partition"),
        f.monotonically_increasing_id().cast("string").alias("position"),
        f.current_timestamp().alias("received_at"),
    )
    raw.write.format("delta").mode("append").save(f"{out}/raw")
    newest = Window.partitionBy("customer", "id").orderBy(f.col("rev").desc())
    latest = rows.withColumn("place", f.row_number().over(newest)).where("place = 1").drop("place")
    latest.write.format("delta").mode("overwrite").save(f"{out}/refined")
    seconds, cpu = time.monotonic() - began, cpu_seconds(java) - cpu
    counts = [spark.read.format("delta").load(f"{out}/{name}").count() for name in ("raw", "refined")]
    print(json.dumps({"seconds": seconds, "cpu": cpu, "raw": counts[0], "refined": counts[1]}))
    spark.stop()


main()
