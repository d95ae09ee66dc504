import { setImmediate as turn } from "node:timers/promises";
import { deserialize, serialize } from "node:v8";
import type { Code } from "../../services/base/codes.js";
import { TributaryError } from "../../services/base/errors.js";
import { CHUNK_WORKER } from "../../services/bulk/chunks/chunk-file.js";
import type { Reply } from "../../services/sources/protocol.js";
import { type Answer, reply, tellerOf } from "../../services/sources/serve.js";
import type { ProcessLimits } from "../../services/sources/source-process.js";

/** As messages between processes are. */
const copy = <T>(message: T): T => deserialize(serialize(message)) as T;

/**
 * For unit tests of what asks readers: they answer in this process, as starting one takes a second of CPU. Only a process
 * can be killed: one that is ended here is gone once its work is done.
 *
 *     vi.mock("…/services/sources/source-process.js", () => import("…/test/support/readers-here.js"));
 */
export class SourceProcess {
  readonly ended: Promise<void>;
  private answer: Answer<never> | undefined;
  private working: Promise<unknown> = Promise.resolve();
  private tell: (reply: Reply) => void = () => undefined;
  private gone: () => void = () => undefined;
  private reason: Code | undefined;
  private rejectCall: (error: TributaryError) => void = () => undefined;

  constructor(
    private readonly limits: ProcessLimits,
    private readonly script?: string,
  ) {
    this.ended = new Promise<void>((resolve) => {
      this.gone = resolve;
    }).then(async () => void (await this.working));
  }

  async call(
    request: { readonly type: string },
    onTold: (reply: Reply) => void = () => undefined,
  ): Promise<unknown> {
    await turn();
    this.answer ??= await this.opened();
    if (this.reason !== undefined) throw new TributaryError(this.reason);
    this.tell = onTold;
    const answered = reply(this.answer(copy(request) as never));
    this.working = answered;
    const killed = new Promise<never>((_, reject) => {
      this.rejectCall = reject;
    });
    const last = copy(await Promise.race([answered, killed]));
    if (last.type === "failed") throw new TributaryError(last.code, last.message);
    if (last.type !== "done") throw new TributaryError("TRB-INTERNAL");
    return last.result;
  }

  end(reason: Code = "TRB-SOURCE-READER"): void {
    this.reason ??= reason;
    this.tell = () => undefined;
    this.rejectCall(new TributaryError(this.reason));
    this.gone();
  }

  /** Imported late: they import what this stands for. */
  private async opened(): Promise<Answer<never>> {
    const { memoryBytes } = this.limits;
    const tell = tellerOf((told) => this.tell(copy(told)));
    if (this.script !== CHUNK_WORKER) {
      const { readRequests } = await import("../../services/sources/read-requests.js");
      return readRequests({ memoryBytes }, tell);
    }
    const { chunkRequests } = await import("../../services/bulk/chunks/chunk-requests.js");
    return chunkRequests({ memoryBytes }, tell);
  }
}
