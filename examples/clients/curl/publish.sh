#!/bin/sh
# Publishes a change event as JSON. BUS_URL and BUS_TOKEN say where and as whom.
# curl itself tries again after 408, 429 and 5xx, when the bus asks for it; an event sent twice does no harm.
set -eu
curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused "$BUS_URL/v1/events" \
  --header "authorization: Bearer $BUS_TOKEN" --header "content-type: application/json" --data @- <<'JSON'
[{
  "tenantId": "acme",
  "entityType": "tracker.v1.Issue",
  "entityId": "PAY-1",
  "operation": "OPERATION_CREATED",
  "version": "1",
  "occurredAt": "2026-01-02T03:04:05Z",
  "payload": { "@type": "type.googleapis.com/tracker.v1.Issue", "key": "PAY-1", "summary": "From curl" }
}]
JSON
