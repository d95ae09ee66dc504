import { randomUUID } from "node:crypto";
import type { ObjectInfo } from "../storage/object-store.js";

/*
 * Where payloads lie. The first time at their uri, offload/<tenant>/<sha256>. That is never put again, nor deleted: a
 * collector leaves an empty object there, which no payload is. Put anew, a payload lies beside it, at
 * <uri>.<time>-<random>, a key that nobody has had or will have. An empty object kept/<tenant>/<sha256> says that it
 * stays.
 */
export const OFFLOAD = "offload/";
export const KEPT = "kept/";
/** Milliseconds in digits that order as text. */
const TIME_DIGITS = 9;

export const laterPrefix = (uri: string): string => `${uri}.`;

export const laterKey = (uri: string): string =>
  `${laterPrefix(uri)}${Date.now().toString(36).padStart(TIME_DIGITS, "0")}-${randomUUID()}`;

export const keptKey = (uri: string): string => KEPT + uri.slice(OFFLOAD.length);

const KEY = /^(offload\/[^/]+\/[0-9a-f]{64})(\.[0-9a-z-]+)?$/;

/** The uri whose payload lies at the key; undefined for what is none of ours. */
export const uriAt = (key: string): string | undefined => KEY.exec(key)?.[1];

export const isOld = ({ modifiedAt }: ObjectInfo, ms: number): boolean => Date.now() - modifiedAt > ms;
