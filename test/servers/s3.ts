import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { answers, command, freePort, installed, startTool } from "./tool.js";

const VERSITYGW = "v1.8.0";
const MINIO = "v0.0.0-20260212201848-7aac2a2c5b7c";
const ACCESS = "test";
const SECRET = "testtest";

export interface S3Server {
  readonly endpoint: string;
  stop(): Promise<void>;
}

/** For the SDK's chain, as every process of ours finds them. */
export const credentials = { AWS_ACCESS_KEY_ID: ACCESS, AWS_SECRET_ACCESS_KEY: SECRET };

/** Built by Go, which takes minutes of both cores the first time. */
const goProgram = async (name: string, module: string, version: string): Promise<string> => {
  const folder = await installed(`${name}-${version}`, (into) =>
    command("env", [`GOBIN=${into}`, "CGO_ENABLED=0", "go", "install", `${module}@${version}`]),
  );
  return join(folder, name);
};
const installMinio = () => goProgram("minio", "github.com/minio/minio", MINIO);
const installVersityGw = () =>
  goProgram("versitygw", "github.com/versity/versitygw/cmd/versitygw", VERSITYGW);
/** One after the other: each uses all cores. */
export const installS3 = async () => [await installVersityGw(), await installMinio()];

/**
 * "versitygw" stores objects as files, which several gateways can serve at once (`data`: another one's folder); it
 * knows no encryption. "minio" has KMS with a key of its own, "my-key".
 */
export async function startS3(
  kind: "versitygw" | "minio" = "versitygw",
  data?: string,
): Promise<S3Server & { readonly data: string }> {
  const run = mkdtempSync(join(tmpdir(), `tributary-${kind}-`));
  const folder = data ?? join(run, "data");
  mkdirSync(folder, { recursive: true });
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const address = `127.0.0.1:${port}`;
  const log = join(run, "log");
  const tool = await (async () => {
    if (kind === "minio") {
      const program = await installMinio();
      const env = {
        MINIO_ROOT_USER: ACCESS,
        MINIO_ROOT_PASSWORD: SECRET,
        MINIO_BROWSER: "off",
        MINIO_UPDATE: "off",
        MINIO_KMS_SECRET_KEY: "my-key:bXltaW5pb2tleW15bWluaW9rZXlteW1pbmlva2V5MTI=",
      };
      const ready = async () => (await fetch(`${endpoint}/minio/health/ready`)).status === 200;
      return startTool({
        program,
        args: ["server", "--quiet", "--address", address, folder],
        env,
        log,
        ready,
      });
    }
    const program = await installVersityGw();
    const server = ["--port", address, "--access", ACCESS, "--secret", SECRET, "--keep-alive", "--quiet"];
    const args = [...server, "--health", "/health", "posix", folder];
    return startTool({ program, args, log, ready: () => answers(`${endpoint}/health`) });
  })();
  return {
    endpoint,
    data: folder,
    stop: async () => {
      await tool.stop();
      rmSync(run, { recursive: true, force: true });
    },
  };
}
