/**
 * Connections that mean no good, in a process of its own: arguments are port, token and how many of each kind. `slow`
 * ones announce 64 MB and drip, `idle` ones announce as much and send a byte, `head` ones never end their head. Each is
 * opened again when it is cut. Loopback only; ends with its standard input, and then tells what it was answered.
 */
import { connect } from "node:net";

const [port, token, slow, idle, heads] = process.argv.slice(2);
const head =
  `POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\n` +
  "content-type: application/x-protobuf\r\n";
const announced = `${head}content-length: ${64 * 1024 * 1024}\r\n\r\nx`;
const dripping = new Set();
const answers = {};
let connected = 0;
let cut = 0;
let told = false;

function open(kind) {
  const socket = connect(Number(port), "127.0.0.1");
  socket.on("connect", () => {
    socket.write(kind === "head" ? head : announced);
    if (kind === "slow") dripping.add(socket);
    if (++connected === wanted && !told) {
      told = true;
      console.log("connected");
    }
  });
  socket.on("data", (chunk) => {
    const status = String(chunk).slice(9, 12);
    answers[status] = (answers[status] ?? 0) + 1;
  });
  socket.on("error", () => undefined);
  socket.on("close", () => {
    dripping.delete(socket);
    connected--;
    cut++;
    open(kind);
  });
}

const kinds = [
  ...Array(Number(slow)).fill("slow"),
  ...Array(Number(idle)).fill("idle"),
  ...Array(Number(heads)).fill("head"),
];
const wanted = kinds.length;
kinds.forEach(open);
setInterval(() => {
  for (const socket of dripping) socket.write("x".repeat(100));
}, 200);
process.stdin.on("end", () => {
  process.stdout.write(`${JSON.stringify({ answers, cut })}\n`, () => process.exit());
});
process.stdin.resume();
