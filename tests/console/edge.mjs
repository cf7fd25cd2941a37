// An edge of its own for each test file: a folder, kernel-chosen ports, ended by its pid.

import { spawn, execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { VANGO_EDGE_BIN, STUDYLAB_BIN, PROJECT } = process.env;

export const HOST = "studylab.localhost";
export const PREVIEW = "pr-7.preview.studylab.localhost";

const SECRET = "whsec_test_secret_of_the_console";

/** The header that Stripe sends with `body`: HMAC-SHA256 over the time, a dot and the body. */
export function signed(body, at = Math.floor(Date.now() / 1000)) {
  return { "content-type": "application/json", "stripe-signature": `t=${at},v1=${createHmac("sha256", SECRET).update(`${at}.${body}`).digest("hex")}` };
}

/**
 * @param {{admin?: string, more?: string, cli?: Record<string, string>, contract?: (text: string) => string}} [options]
 */
export async function startEdge(options = {}) {
  const dir = mkdtempSync(join(tmpdir(), "ve-console-"));
  mkdirSync(join(dir, "apps"));
  cpSync(join(PROJECT, "conf/apps/studylab.toml"), join(dir, "apps/studylab.toml"));
  writeFileSync(
    join(dir, "edge.toml"),
    `[server]\nlisten = ["127.0.0.1:0"]\ngrace = "12s"\n[admin]\nlisten = "127.0.0.1:0"\n${options.admin ?? ""}
[state]\ndir = "state"\n[apps]\ndir = "apps"\n${options.more ?? ""}`,
  );
  const env = { ...process.env, STRIPE_WEBHOOK_SECRET: SECRET };
  const child = spawn(VANGO_EDGE_BIN, ["run", "-c", join(dir, "edge.toml")], { env, stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  child.stderr.on("data", (d) => (log = (log + d).slice(-20_000)));
  const line = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once("line", resolve);
    child.once("exit", (code) => reject(new Error(`the edge ended with ${code}: ${log}`)));
  });
  const { listen, admin } = JSON.parse(line);
  const artifact = join(dir, "artifact");
  cpSync(join(PROJECT, "examples/studylab/app"), artifact, { recursive: true });
  cpSync(STUDYLAB_BIN, join(artifact, "studylab"));
  const contract = join(artifact, "vango-edge.toml");
  if (options.contract) writeFileSync(contract, options.contract(readFileSync(contract, "utf8")));
  const cli = (...args) =>
    execFileSync(VANGO_EDGE_BIN, args, { env: { ...env, VANGO_EDGE_ADMIN: `http://${admin}`, ...options.cli }, encoding: "utf8" });
  cli("deploy", artifact);
  return {
    dir,
    cli,
    admin: `http://${admin}`,
    listen: listen[0],
    log: () => log,
    /** The next version as a preview: one line of its style sheet differs. */
    preview(name) {
      const next = join(dir, name);
      cpSync(artifact, next, { recursive: true });
      appendFileSync(join(next, "public/app.css"), `/* ${name} */\n`);
      return cli("deploy", next, "--preview", name);
    },
    /** @returns {Promise<{status: number, headers: any, body: string}>} */
    send: (method, path, headers = {}, body = undefined, host = HOST) =>
      new Promise((resolve, reject) => {
        const [address, port] = listen[0].split(":");
        const request = http.request({ host: address, port, method, path, agent: false, headers: { host, ...headers } }, (r) => {
          let text = "";
          r.on("data", (d) => (text += d));
          r.on("end", () => resolve({ status: r.statusCode, headers: r.headers, body: text }));
        });
        request.on("upgrade", (r, socket) => {
          socket.destroy();
          resolve({ status: r.statusCode, headers: r.headers, body: "" });
        });
        request.on("error", reject);
        request.end(body);
      }),
    async stop() {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGTERM");
      await ended;
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
