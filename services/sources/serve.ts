import { TributaryError } from "../base/errors.js";
import { beKillable } from "../base/killable.js";
import { tellParent } from "../base/tell-parent.js";
import type { Reject } from "./formats.js";
import type { ReaderOptions, Reply } from "./protocol.js";

/** No more often than this the parent is told that the process gets on. */
const TELL_MS = 100;

/** What of a request's work goes to the parent before its result. */
export interface Teller {
  rejects(rejects: readonly Reject[]): void;
  getsOn(): void;
}

/** Answers the requests of one process, one after the other. Errors other than TributaryErrors are told as TRB-INTERNAL. */
export type Answer<R> = (request: R) => Promise<unknown>;

export type Answering<R> = (options: ReaderOptions, tell: Teller) => Answer<R>;

/** Makes this the child process that a SourceProcess starts. */
export function serve<R>(answering: Answering<R>): void {
  const send = (reply: Reply) => void tellParent(reply);
  const options = JSON.parse(process.argv[2] ?? "{}") as ReaderOptions;
  const answer = answering(options, tellerOf(send));
  beKillable();
  process.on("message", (request: R) => void reply(answer(request)).then(send));
}

export function tellerOf(send: (reply: Reply) => void): Teller {
  let told = 0;
  return {
    rejects: (rejects) => send(rejects.length === 0 ? { type: "progress" } : { type: "rejects", rejects }),
    getsOn() {
      if (performance.now() - told < TELL_MS) return;
      told = performance.now();
      send({ type: "progress" });
    },
  };
}

/** The last message of a call. Never rejects. */
export async function reply(answered: Promise<unknown>): Promise<Reply> {
  try {
    return { type: "done", result: await answered };
  } catch (error) {
    const failure = error instanceof TributaryError ? error : new TributaryError("TRB-INTERNAL");
    return { type: "failed", code: failure.code, message: failure.message };
  }
}
