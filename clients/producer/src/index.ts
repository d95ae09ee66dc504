export type { BusOptions, TokenSource } from "./bus-client.js";
export type { Receipt } from "./entry.js";
export { PRODUCER_CODES, type ProducerCode, ProducerError } from "./errors.js";
export { type ChangeEvent, changeEvent, type Instant, type Operation, type TypedEvent } from "./event.js";
export type { ProducerOptions } from "./options.js";
export { type LendLimits, type Outbox, OutboxRelay, type RelayOptions, type Settlement } from "./outbox.js";
export { type CloseReport, Producer } from "./producer.js";
