import io.delta.kernel.Scan;
import io.delta.kernel.Snapshot;
import io.delta.kernel.Table;
import io.delta.kernel.data.ArrayValue;
import io.delta.kernel.data.ColumnVector;
import io.delta.kernel.data.ColumnarBatch;
import io.delta.kernel.data.FilteredColumnarBatch;
import io.delta.kernel.data.MapValue;
import io.delta.kernel.data.Row;
import io.delta.kernel.defaults.engine.DefaultEngine;
import io.delta.kernel.engine.Engine;
import io.delta.kernel.internal.InternalScanFileUtils;
import io.delta.kernel.internal.data.ScanStateRow;
import io.delta.kernel.internal.util.Utils;
import io.delta.kernel.types.*;
import io.delta.kernel.utils.CloseableIterator;
import io.delta.kernel.utils.FileStatus;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.stream.IntStream;

/** KernelReader TABLE VERSION …: for each pair a line "rows digest", of Delta Kernel's rows in canonical.py's form. */
public class KernelReader {
  static String text(ColumnVector vector, int row) {
    if (vector.isNullAt(row)) return "~";
    DataType type = vector.getDataType();
    if (type instanceof BooleanType) return vector.getBoolean(row) ? "true" : "false";
    if (type instanceof ByteType) return String.valueOf(vector.getByte(row));
    if (type instanceof ShortType) return String.valueOf(vector.getShort(row));
    if (type instanceof IntegerType || type instanceof DateType) return String.valueOf(vector.getInt(row));
    if (type instanceof LongType || type instanceof TimestampType) return String.valueOf(vector.getLong(row));
    if (type instanceof DoubleType) return String.format("%016x", Double.doubleToLongBits(vector.getDouble(row)));
    if (type instanceof DecimalType) return vector.getDecimal(row).unscaledValue().toString();
    if (type instanceof StringType) return hex(vector.getString(row).getBytes(StandardCharsets.UTF_8));
    if (type instanceof BinaryType) return hex(vector.getBinary(row));
    if (type instanceof ArrayType) {
      ArrayValue array = vector.getArray(row);
      List<String> items = new ArrayList<>();
      for (int i = 0; i < array.getSize(); i++) items.add(text(array.getElements(), i));
      return "[" + String.join(",", items) + "]";
    }
    if (type instanceof MapType) {
      MapValue map = vector.getMap(row);
      List<String> pairs = new ArrayList<>();
      for (int i = 0; i < map.getSize(); i++) pairs.add(text(map.getKeys(), i) + "=" + text(map.getValues(), i));
      Collections.sort(pairs);
      return "{" + String.join(",", pairs) + "}";
    }
    if (type instanceof StructType) {
      List<String> names = new ArrayList<>(((StructType) type).fieldNames());
      Collections.sort(names);
      List<String> values = new ArrayList<>();
      for (String name : names) values.add(text(vector.getChild(((StructType) type).indexOf(name)), row));
      return "(" + String.join(",", values) + ")";
    }
    throw new IllegalArgumentException("no canonical form for " + type);
  }

  static String hex(byte[] bytes) {
    return HexFormat.of().formatHex(bytes);
  }

  static List<String> rows(Engine engine, Snapshot snapshot, int[] order) throws Exception {
    List<String> lines = new ArrayList<>();
    Scan scan = snapshot.getScanBuilder().build();
    Row state = scan.getScanState(engine);
    StructType physical = ScanStateRow.getPhysicalDataReadSchema(state);
    try (CloseableIterator<FilteredColumnarBatch> batches = scan.getScanFiles(engine)) {
      while (batches.hasNext()) {
        try (CloseableIterator<Row> files = batches.next().getRows()) {
          while (files.hasNext()) {
            Row file = files.next();
            FileStatus status = InternalScanFileUtils.getAddFileStatus(file);
            CloseableIterator<ColumnarBatch> read =
                engine
                    .getParquetHandler()
                    .readParquetFiles(Utils.singletonCloseableIterator(status), physical, Optional.empty())
                    .map(result -> result.getData());
            try (CloseableIterator<FilteredColumnarBatch> data = Scan.transformPhysicalData(engine, state, file, read)) {
              while (data.hasNext()) collect(data.next(), order, lines);
            }
          }
        }
      }
    }
    return lines;
  }

  static void collect(FilteredColumnarBatch batch, int[] order, List<String> lines) {
    ColumnarBatch data = batch.getData();
    Optional<ColumnVector> selected = batch.getSelectionVector();
    for (int row = 0; row < data.getSize(); row++) {
      if (selected.isPresent() && (selected.get().isNullAt(row) || !selected.get().getBoolean(row))) continue;
      List<String> values = new ArrayList<>();
      for (int column : order) values.add(text(data.getColumnVector(column), row));
      lines.add(String.join("|", values));
    }
  }

  public static void main(String[] arguments) throws Exception {
    Engine engine = DefaultEngine.create(new org.apache.hadoop.conf.Configuration());
    for (int i = 0; i < arguments.length; i += 2) {
      Snapshot snapshot = Table.forPath(engine, arguments[i]).getSnapshotAsOfVersion(engine, Long.parseLong(arguments[i + 1]));
      List<String> names = snapshot.getSchema().fieldNames();
      int[] order = IntStream.range(0, names.size()).boxed().sorted((a, b) -> names.get(a).compareTo(names.get(b))).mapToInt(n -> n).toArray();
      List<String> lines = rows(engine, snapshot, order);
      int count = lines.size();
      Collections.sort(lines);
      List<String> sorted = new ArrayList<>(names);
      Collections.sort(sorted);
      lines.add(0, String.join(",", sorted));
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(String.join("\n", lines).getBytes(StandardCharsets.UTF_8));
      System.out.println(count + " " + hex(digest));
    }
  }
}
