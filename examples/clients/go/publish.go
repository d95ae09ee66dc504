// Publishes change events as protobuf. BUS_URL and BUS_TOKEN say where and as whom.
//
//	protoc -I proto --go_out=. --go_opt=module=example.com/publish \
//	  --go_opt=Mtributary/v1/bus.proto=example.com/publish/gen/tributaryv1 \
//	  --go_opt=Mtributary/v1/change_event.proto=example.com/publish/gen/tributaryv1 \
//	  --go_opt=Mtracker/v1/tracker.proto=example.com/publish/gen/trackerv1 \
//	  tributary/v1/bus.proto tributary/v1/change_event.proto tracker/v1/tracker.proto
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"time"

	"example.com/publish/gen/trackerv1"
	"example.com/publish/gen/tributaryv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var client = http.Client{Timeout: 30 * time.Second}

func issue(key string, version int64, summary string) *tributaryv1.ChangeEvent {
	payload, err := anypb.New(&trackerv1.Issue{Key: key, Summary: summary})
	if err != nil {
		log.Fatal(err)
	}
	return &tributaryv1.ChangeEvent{
		TenantId:   "acme",
		EntityType: "tracker.v1.Issue",
		EntityId:   key,
		Operation:  tributaryv1.Operation_OPERATION_UPDATED,
		Version:    version,
		OccurredAt: timestamppb.Now(),
		Content:    &tributaryv1.ChangeEvent_Payload{Payload: payload},
	}
}

func post(events []*tributaryv1.ChangeEvent) (*http.Response, []byte, error) {
	body, err := proto.Marshal(&tributaryv1.PublishRequest{Events: events})
	if err != nil {
		log.Fatal(err)
	}
	request, err := http.NewRequest("POST", os.Getenv("BUS_URL")+"/v1/events", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("BUS_TOKEN"))
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("Accept", "application/x-protobuf")
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response, answer, err
}

// Those that the bus refuses for now.
func refused(events []*tributaryv1.ChangeEvent, answer []byte) (again []*tributaryv1.ChangeEvent) {
	var published tributaryv1.PublishResponse
	if err := proto.Unmarshal(answer, &published); err != nil {
		log.Fatal(err)
	}
	for i, result := range published.Results {
		switch id := events[i].EntityId; {
		case result.Accepted:
			fmt.Println(id, result.Partition, result.Position)
		case result.Retryable:
			again = append(again, events[i])
		default:
			log.Fatalf("%s: %s: %s", id, result.Code, result.Message)
		}
	}
	return again
}

// Until each event is durable. What was sent and not answered is sent again, which does no harm.
func publish(events []*tributaryv1.ChangeEvent) {
	for attempt := 0; attempt < 8; attempt++ {
		asked := 0.0
		// An error is no connection, or one that broke: sent again.
		if response, answer, err := post(events); err == nil {
			switch response.StatusCode {
			case 200:
				if events = refused(events, answer); len(events) == 0 {
					return
				}
			case 408, 429, 500, 502, 503, 504:
				asked, _ = strconv.ParseFloat(response.Header.Get("Retry-After"), 64)
			default:
				log.Fatalf("%s: %s", response.Status, answer)
			}
		}
		pause := rand.Float64() * min(0.1*float64(int(1)<<attempt), 5)
		time.Sleep(time.Duration((asked + pause) * float64(time.Second)))
	}
	log.Fatal("the bus did not take the events in time")
}

func main() {
	var events []*tributaryv1.ChangeEvent
	for _, key := range []string{"PAY-1", "PAY-2", "PAY-3"} {
		events = append(events, issue(key, 1, "From Go"))
	}
	publish(events)
}
