import { describe, expect, it } from "vitest";
import { loadConfig } from "./config.js";
import { TributaryError } from "./errors.js";

const load = (env: NodeJS.ProcessEnv, overrides = {}) => loadConfig(overrides, { env });

describe("configuration", () => {
  it("has defaults that need nothing", () => {
    const config = load({});
    expect(config).toMatchObject({ data: "./data", http: { host: "127.0.0.1", port: 8080 } });
  });

  it("takes variables, and what the command line says over them", () => {
    const env = {
      TRIBUTARY_HTTP__PORT: "9000",
      TRIBUTARY_INGEST__FLUSH_EVENTS: "123",
      TRIBUTARY_PROTO_DIRS: "a,b",
      TRIBUTARY_TOKEN: "not a setting",
    };
    expect(load(env, { http: { host: "::1" } })).toMatchObject({
      http: { host: "::1", port: 9000 },
      ingest: { flushEvents: 123 },
      protoDirs: ["a", "b"],
    });
  });

  it.each([
    [{ TRIBUTARY_HTTP__PORT: "70000" }, /^http\.port: .*65535.*found "70000"$/],
    [{ TRIBUTARY_QUERY__WORKERS: "none" }, /^query\.workers: .*found "none"$/],
    [{ TRIBUTARY_LOG__LEVEL: "loud" }, /^log\.level: .*found "loud"$/],
    [{ TRIBUTARY_BUSS__X: "1" }, /^\(top\): no such setting: buss$/],
    [{ TRIBUTARY_BUS__MAX_BODY: "1" }, /^bus: no such setting: maxBody$/],
    [{ TRIBUTARY_LOG: "1" }, /^log: .*found "1"$/],
    [
      { TRIBUTARY_LOG: "1", TRIBUTARY_LOG__LEVEL: "warn" },
      /^TRIBUTARY_LOG__LEVEL: .*found variables for both$/,
    ],
    [{ TRIBUTARY_LOG__LEVEL: "warn", TRIBUTARY_LOG: "1" }, /^TRIBUTARY_LOG: .*found variables for both$/],
    [{ TRIBUTARY_HTTP__PORT: "" }, /^http\.port: .*found ""$/],
    [{ TRIBUTARY_QUERY__WORKERS: "0x10" }, /^query\.workers: .*found "0x10"$/],
    [{ TRIBUTARY_CONSTRUCTOR__PROTOTYPE__PORT: "1" }, /^\(top\): no such setting: constructor$/],
  ])("names path, expectation and what was found: %o", (env, message) => {
    const failure = (() => {
      try {
        load(env);
      } catch (error) {
        return error;
      }
      return undefined;
    })();
    expect(failure).toBeInstanceOf(TributaryError);
    expect((failure as TributaryError).code).toBe("TRB-CONFIG");
    expect((failure as TributaryError).message).toMatch(message);
    expect(({} as { port?: string }).port).toBeUndefined();
  });

  it.each([
    { password: "hunter2", passwordFile: "/x", mechanism: "PLAIN", username: "u" },
    { password: ["hunter2"], mechanism: "PLAIN", username: "u" },
    { password: "hunter2", mechanism: "LOGIN", username: "u" },
    "u:hunter2",
  ])("tells of no password, whatever is wrong about it: %o", (sasl) => {
    const settings = { stream: { kafka: { sasl } } };
    expect(() => loadConfig(settings, { env: {} })).toThrow(/^stream\.kafka\.sasl/);
    expect(() => loadConfig(settings, { env: {} })).not.toThrow(/hunter2/);
    // Nor where the level above is wrong.
    expect(() => loadConfig({ stream: [settings.stream] }, { env: {} })).not.toThrow(/hunter2/);
  });
});
