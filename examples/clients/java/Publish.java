import com.google.protobuf.Any;
import com.google.protobuf.Timestamp;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import tracker.v1.Tracker.Issue;
import tributary.v1.Bus.PublishRequest;
import tributary.v1.Bus.PublishResponse;
import tributary.v1.ChangeEventOuterClass.ChangeEvent;
import tributary.v1.ChangeEventOuterClass.Operation;

/**
 * Publishes change events as protobuf. BUS_URL and BUS_TOKEN say where and as whom.
 *
 * <p>protoc -I proto --java_out=gen tributary/v1/bus.proto tributary/v1/change_event.proto tracker/v1/tracker.proto
 */
public final class Publish {
  private static final Set<Integer> AGAIN = Set.of(408, 429, 500, 502, 503, 504);
  private static final HttpClient HTTP = HttpClient.newHttpClient();

  private static ChangeEvent issue(String key, long version, String summary) {
    Instant now = Instant.now();
    Issue payload = Issue.newBuilder().setKey(key).setSummary(summary).build();
    return ChangeEvent.newBuilder()
        .setTenantId("acme")
        .setEntityType("tracker.v1.Issue")
        .setEntityId(key)
        .setOperation(Operation.OPERATION_UPDATED)
        .setVersion(version)
        .setOccurredAt(Timestamp.newBuilder().setSeconds(now.getEpochSecond()).setNanos(now.getNano()))
        .setPayload(Any.pack(payload))
        .build();
  }

  private static HttpResponse<byte[]> post(List<ChangeEvent> events) throws IOException, InterruptedException {
    byte[] body = PublishRequest.newBuilder().addAllEvents(events).build().toByteArray();
    HttpRequest request =
        HttpRequest.newBuilder(URI.create(System.getenv("BUS_URL") + "/v1/events"))
            .timeout(Duration.ofSeconds(30))
            .header("Authorization", "Bearer " + System.getenv("BUS_TOKEN"))
            .header("Content-Type", "application/x-protobuf")
            .header("Accept", "application/x-protobuf")
            .POST(HttpRequest.BodyPublishers.ofByteArray(body))
            .build();
    return HTTP.send(request, HttpResponse.BodyHandlers.ofByteArray());
  }

  /** Until each event is durable. What was sent and not answered is sent again, which does no harm. */
  static void publish(List<ChangeEvent> events) throws InterruptedException {
    for (int attempt = 0; attempt < 8; attempt++) {
      double asked = 0;
      try {
        HttpResponse<byte[]> answer = post(events);
        if (answer.statusCode() == 200) {
          events = refusedForNow(events, PublishResponse.parseFrom(answer.body()));
          if (events.isEmpty()) return;
        } else if (!AGAIN.contains(answer.statusCode())) {
          throw new IllegalStateException(answer.statusCode() + ": " + new String(answer.body()));
        }
        asked = answer.headers().firstValue("Retry-After").map(Double::parseDouble).orElse(0.0);
      } catch (IOException brokenConnection) {
        // Sent again.
      }
      double pause = ThreadLocalRandom.current().nextDouble(Math.min(0.1 * (1 << attempt), 5));
      Thread.sleep((long) ((asked + pause) * 1000));
    }
    throw new IllegalStateException("the bus did not take the events in time");
  }

  private static List<ChangeEvent> refusedForNow(List<ChangeEvent> events, PublishResponse answer) {
    List<ChangeEvent> again = new ArrayList<>();
    for (int i = 0; i < events.size(); i++) {
      var event = events.get(i);
      var result = answer.getResults(i);
      if (result.getAccepted()) {
        System.out.println(event.getEntityId() + " " + result.getPartition() + " " + result.getPosition());
      } else if (result.getRetryable()) {
        again.add(event);
      } else {
        throw new IllegalStateException(
            event.getEntityId() + ": " + result.getCode() + ": " + result.getMessage());
      }
    }
    return again;
  }

  public static void main(String[] args) throws InterruptedException {
    List<ChangeEvent> events = new ArrayList<>();
    for (int number = 1; number <= 3; number++) events.add(issue("PAY-" + number, 1, "From Java"));
    publish(events);
  }
}
