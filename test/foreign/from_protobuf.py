"""What Spark's from_protobuf makes of a message with the options of services/models/spark-payload.ts, as a UDF.

Spark's own lies in a jar of its own, and in SQL from Spark 4 on. This one is made of Google's library and of what Spark's
documentation and source say: enums by name, an unknown one by a name that Java makes up; 64 bits without a sign as
DECIMAL(20,0), but fixed32 and fixed64 with one; wrappers as what they wrap; all fields NULL for what does not decode.
"""

from datetime import datetime, timedelta, timezone
from decimal import Decimal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from pyspark.sql import types

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
WIDE = types.DecimalType(20, 0)
PLAIN = {
    "TYPE_DOUBLE": types.DoubleType(),
    "TYPE_FLOAT": types.FloatType(),
    "TYPE_INT64": types.LongType(),
    "TYPE_UINT64": WIDE,
    "TYPE_INT32": types.IntegerType(),
    "TYPE_FIXED64": types.LongType(),
    "TYPE_FIXED32": types.IntegerType(),
    "TYPE_BOOL": types.BooleanType(),
    "TYPE_STRING": types.StringType(),
    "TYPE_BYTES": types.BinaryType(),
    "TYPE_UINT32": types.LongType(),
    "TYPE_ENUM": types.StringType(),
    "TYPE_SFIXED32": types.IntegerType(),
    "TYPE_SFIXED64": types.LongType(),
    "TYPE_SINT32": types.IntegerType(),
    "TYPE_SINT64": types.LongType(),
}


def kind_of(field):
    return descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)


def is_map(field):
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def value_type(field):
    message = field.message_type
    if message is None:
        return PLAIN[kind_of(field)]
    if message.full_name == "google.protobuf.Timestamp":
        return types.TimestampType()
    if message.file.name == "google/protobuf/wrappers.proto":
        return value_type(message.fields_by_name["value"])
    return struct_type(message)


def struct_type(message):
    return types.StructType([types.StructField(field.name, field_type(field)) for field in message.fields])


def field_type(field):
    if is_map(field):
        entry = field.message_type.fields_by_name
        return types.MapType(value_type(entry["key"]), value_type(entry["value"]))
    return types.ArrayType(value_type(field)) if field.is_repeated else value_type(field)


def signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) else value


def value_of(field, value):
    message = field.message_type
    kind = kind_of(field)
    if message is not None:
        if message.full_name == "google.protobuf.Timestamp":
            return EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
        if message.file.name == "google/protobuf/wrappers.proto":
            return value_of(message.fields_by_name["value"], value.value)
        return row_of(value)
    if kind == "TYPE_ENUM":
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else f"UNKNOWN_ENUM_VALUE_{field.enum_type.name}_{value}"
    if kind == "TYPE_UINT64":
        return Decimal(value)
    if kind in ("TYPE_FIXED32", "TYPE_FIXED64"):
        return signed(value, int(kind[-2:]))
    return value


def field_of(message, field):
    value = getattr(message, field.name)
    if is_map(field):
        entry = field.message_type.fields_by_name
        return {value_of(entry["key"], key): value_of(entry["value"], value[key]) for key in value}
    if field.is_repeated:
        return [value_of(field, item) for item in value]
    return value_of(field, value) if not field.has_presence or message.HasField(field.name) else None


def row_of(message):
    return tuple(field_of(message, field) for field in message.DESCRIPTOR.fields)


def pool_of(descriptors):
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
        pool.Add(file)
    return pool


def from_protobuf(descriptors, name):
    """The function, and the type of what it returns."""
    known = []

    def decode(data):
        # The library's objects don't travel to Spark's workers; what they are made of does.
        if not known:
            known.append(message_factory.GetMessageClass(pool_of(descriptors).FindMessageTypeByName(name)))
        if data is None:
            return None
        try:
            return row_of(known[0].FromString(bytes(data)))
        except DecodeError:
            return tuple(None for _ in known[0].DESCRIPTOR.fields)

    return decode, struct_type(pool_of(descriptors).FindMessageTypeByName(name))
