"""read_spark_s3.py ENDPOINT OUT TABLE...: Spark reads Delta tables over s3a; the n-th one's rows become OUT/<n>.ndjson.

A row is a JSON object with values as plain.py makes them. Credentials come from the environment. Run with the Python of
Spark 3.5 and with TZ=UTC, by which Python gets its times; TEST_IVY is where the jars are kept.
"""

import json
import os
import sys

from delta import configure_spark_with_delta_pip
from plain import plain
from pyspark.sql import SparkSession

# Of the Hadoop that this Spark comes with.
S3A = "org.apache.hadoop:hadoop-aws:3.3.4"


def session(endpoint):
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.jars.ivy": os.environ["TEST_IVY"],
        "spark.hadoop.fs.s3a.endpoint": endpoint,
        "spark.hadoop.fs.s3a.endpoint.region": os.environ["AWS_REGION"],
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.aws.credentials.provider": "com.amazonaws.auth.EnvironmentVariableCredentialsProvider",
    }
    builder = SparkSession.builder.master("local[2]").appName("tables on S3")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = configure_spark_with_delta_pip(builder, extra_packages=[S3A]).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    return spark


def main():
    endpoint, out = sys.argv[1:3]
    spark = session(endpoint)
    for at, table in enumerate(sys.argv[3:]):
        with open(os.path.join(out, f"{at}.ndjson"), "w", encoding="utf-8") as file:
            for row in spark.sql(f"SELECT * FROM delta.`{table}`").toLocalIterator():
                file.write(json.dumps(plain(row.asDict(recursive=True)), ensure_ascii=False) + "\n")
    spark.stop()


main()
