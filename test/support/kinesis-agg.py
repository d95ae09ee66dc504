"""Packs and unpacks KPL records with aws_kinesis_agg; argument: its folder. One JSON object in, one out."""
import base64
import json
import os
import sys

folder = sys.argv[1]
# Its modules import each other without their package.
sys.path[:0] = [folder, os.path.join(folder, "aws_kinesis_agg")]
from aws_kinesis_agg.aggregator import RecordAggregator
from aws_kinesis_agg.deaggregator import iter_deaggregate_records

asked = json.load(sys.stdin)
aggregator = RecordAggregator()
for i, event in enumerate(asked["events"]):
    assert aggregator.add_user_record("key-%d" % (i % 3), base64.b64decode(event)) is None
packed = aggregator.clear_and_get().get_contents()[2]
record = {
    "eventSource": "aws:kinesis",
    "kinesis": {
        "kinesisSchemaVersion": "1.0",
        "partitionKey": "k",
        "sequenceNumber": "1",
        "data": asked["record"],
        "approximateArrivalTimestamp": 1.0,
    },
}
unpacked = [each["kinesis"]["data"] for each in iter_deaggregate_records([record])]
plain = [each if isinstance(each, str) else each.decode() for each in unpacked]
json.dump({"packed": base64.b64encode(packed).decode(), "unpacked": plain}, sys.stdout)
