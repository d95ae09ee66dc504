"""Publishes change events as protobuf. BUS_URL and BUS_TOKEN say where and as whom.

protoc -I proto --python_out=gen tributary/v1/bus.proto tributary/v1/change_event.proto tracker/v1/tracker.proto
PYTHONPATH=gen python publish.py
"""

import os
import random
import time
import urllib.error
import urllib.request

from tracker.v1 import tracker_pb2
from tributary.v1 import bus_pb2, change_event_pb2


def issue(key, version, summary):
    event = change_event_pb2.ChangeEvent(
        tenant_id="acme",
        entity_type="tracker.v1.Issue",
        entity_id=key,
        operation=change_event_pb2.OPERATION_UPDATED,
        version=version,
    )
    event.occurred_at.GetCurrentTime()
    event.payload.Pack(tracker_pb2.Issue(key=key, summary=summary))
    return event


def post(events):
    request = urllib.request.Request(
        os.environ["BUS_URL"] + "/v1/events",
        data=bus_pb2.PublishRequest(events=events).SerializeToString(),
        headers={
            "Authorization": "Bearer " + os.environ["BUS_TOKEN"],
            "Content-Type": "application/x-protobuf",
            "Accept": "application/x-protobuf",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return bus_pb2.PublishResponse.FromString(response.read())


def publish(events, attempts=8):
    """Until each event is durable. What was sent and not answered is sent again, which does no harm."""
    for attempt in range(attempts):
        asked = 0.0
        try:
            results = post(events).results
            for event, result in zip(events, results):
                if result.accepted:
                    print(event.entity_id, result.partition, result.position)
                elif not result.retryable:
                    raise SystemExit(f"{event.entity_id}: {result.code}: {result.message}")
            events = [event for event, result in zip(events, results) if not result.accepted]
            if not events:
                return
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429, 500, 502, 503, 504):
                raise SystemExit(f"{error.code}: {error.read().decode()}")
            asked = float(error.headers.get("Retry-After") or 0)
        except OSError:
            pass  # no connection, or it broke
        time.sleep(asked + random.uniform(0, min(0.1 * 2**attempt, 5)))
    raise SystemExit("the bus did not take the events in time")


publish([issue(f"PAY-{number}", 1, "From Python") for number in (1, 2, 3)])
