import { isAbsolute, join, resolve } from "node:path";
import type { Config } from "../base/config.js";
import { TributaryError } from "../base/errors.js";
import { LocalRoot } from "./local-root.js";
import type { SourceRoot } from "./root.js";
import { Scratch } from "./scratch.js";
import { parseSource } from "./source-path.js";

/** A source that a caller named: a place below a root. */
export interface Place {
  readonly root: SourceRoot;
  /** "" for all of the root. */
  readonly path: string;
}

/** The roots of the configuration, `bulk.sources`. */
export class Sources {
  private constructor(
    private readonly roots: ReadonlyMap<string, SourceRoot>,
    private readonly urls: ReadonlyMap<string, string>,
    private readonly end: () => void,
  ) {}

  /** `scratch` is a folder of this process alone, which is emptied. Makes no request. Errors: TRB-SOURCE-SCRATCH. */
  static async open(
    { data, storage, bulk }: Pick<Config, "data" | "storage" | "bulk">,
    scratch: string,
  ): Promise<Sources> {
    const roots = new Map<string, SourceRoot>();
    const urls = new Map<string, string>();
    const ends: (() => void)[] = [];
    let copies: Scratch | undefined;
    for (const [name, { url, ...place }] of Object.entries(bulk.sources)) {
      urls.set(name, url);
      if (isAbsolute(url)) {
        roots.set(name, new LocalRoot(name, url, resolve(data)));
        continue;
      }
      copies ??= await Scratch.open(join(scratch, "copies"), bulk.scratchBytes);
      // The SDK takes a while to load; who reads no bucket is spared that.
      const { S3Connection } = await import("../storage/s3-connection.js");
      const { S3Root } = await import("./s3-root.js");
      const [bucket = "", ...prefix] = url.slice("s3://".length).split("/");
      const s3 = new S3Connection({ ...place, bucket, prefix: prefix.join("/") });
      ends.push(() => s3.client.destroy());
      const { s3: lake } = storage;
      const own = storage.kind === "s3" ? { bucket: lake.bucket!, prefix: lake.prefix } : undefined;
      roots.set(name, new S3Root(name, s3, copies, own));
    }
    return new Sources(roots, urls, () => {
      for (const end of ends) end();
    });
  }

  /** Errors: TRB-SOURCE-ROOT, TRB-SOURCE-PATH. */
  at(source: string): Place {
    const { root: name, path } = parseSource(source, this.urls);
    const root = this.roots.get(name);
    if (root === undefined) throw new TributaryError("TRB-SOURCE-ROOT");
    return { root, path };
  }

  /** Ends the connections. */
  close(): void {
    this.end();
  }
}
