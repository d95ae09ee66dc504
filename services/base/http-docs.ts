import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import type { FastifyInstance } from "fastify";
import { CODES } from "./codes.js";

/**
 * What the page may load and ask: this server, nothing else. It styles itself from scripts, so inline styles are
 * allowed; no inline script is.
 */
const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

/** /docs, a page to read and try the routes on, with /docs/json and /docs/yaml; to be called before routes are added. */
export async function registerDocs(app: FastifyInstance, version: string): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: { title: "Tributary", version, description: description() },
      components: {
        securitySchemes: {
          token: {
            type: "http",
            scheme: "bearer",
            bearerFormat: "JWT",
            description: "A token of `tributary token`, without the word Bearer.",
          },
        },
      },
    },
  });
  await app.register(swaggerUi, {
    routePrefix: "/docs",
    staticCSP: CONTENT_SECURITY_POLICY,
    theme: { title: "Tributary" },
    // Tokens stay in the page's memory: nothing is kept in the browser's storage.
    uiConfig: { layout: "BaseLayout", tryItOutEnabled: true, persistAuthorization: false, deepLinking: true },
  });
}

function description(): string {
  const rows = Object.entries(CODES).map(
    ([code, { status, retry, summary, remedy }]) =>
      `| \`${code}\` | ${status} | ${retry ? "yes" : "no"} | ${summary} | ${remedy} |`,
  );
  return `Change events in, one tenant's rows out. Every failing request is answered with one error body, whose code is one
of these; 429 and 503 carry \`Retry-After\`.

| code | status | a retry helps | what happened | remedy |
|---|---|---|---|---|
${rows.join("\n")}
`;
}
