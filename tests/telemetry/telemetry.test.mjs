// A real Prometheus scrapes a real edge, and every query of the dashboard returns data from a run of
// the sample app. The alert rules load in the same Prometheus.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { startEdge } from "../console/edge.mjs";

const { PROJECT, PROMETHEUS } = process.env;

/** A port of the kernel's choice; Prometheus cannot say which one it got. */
const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

async function eventually(what, look) {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const found = await look().catch((e) => e.message);
    if (found === true) return;
    if (Date.now() > deadline) assert.fail(`${what}: ${found}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

test("Prometheus scrapes it, and the dashboard's queries return data", async (t) => {
  const edge = await startEdge();
  t.after(() => edge.stop());
  const dir = mkdtempSync(join(tmpdir(), "ve-prometheus-"));
  const port = await freePort();
  const target = new URL(edge.admin).host;
  writeFileSync(
    join(dir, "prometheus.yml"),
    `global: { scrape_interval: 500ms, evaluation_interval: 1s }
rule_files: ["${PROJECT}/conf/prometheus/vango-edge.rules.yml"]
scrape_configs: [{ job_name: vango-edge, static_configs: [{ targets: ["${target}"] }] }]`,
  );
  const args = [`--config.file=${dir}/prometheus.yml`, `--storage.tsdb.path=${dir}/data`, `--web.listen-address=127.0.0.1:${port}`];
  let log = "";
  const prometheus = spawn(PROMETHEUS, args, { stdio: ["ignore", "ignore", "pipe"] });
  prometheus.stderr.on("data", (d) => (log = (log + d).slice(-4000)));
  t.after(async () => {
    const ended = new Promise((resolve) => prometheus.once("exit", resolve));
    prometheus.kill("SIGTERM");
    await ended;
    rmSync(dir, { recursive: true, force: true });
  });
  const ask = async (query) => {
    const answer = await (await fetch(`http://127.0.0.1:${port}/api/v1/query?${new URLSearchParams({ query })}`)).json();
    assert.equal(answer.status, "success", `${query}: ${JSON.stringify(answer)}`);
    return answer.data.result;
  };
  await eventually(`the edge is scraped: ${log}`, async () => (await ask('up{job="vango-edge"} == 1')).length === 1);

  // Every second a round of every kind, so that rates have something to see.
  let on = true;
  let failed = null;
  const traffic = (async () => {
    for (let n = 0; on; n += 1) {
      await edge.send("GET", "/dashboard");
      await edge.send("POST", "/actions/save", { "idempotency-key": `t-${n}`, "content-type": "application/x-www-form-urlencoded" }, "text=x");
      await edge.send("GET", "/", {}, undefined, "nobody.localhost");
      if (n % 3 === 0) edge.cli("sleep", "studylab");
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  })().catch((e) => (failed = e));
  t.after(async () => {
    on = false;
    await traffic;
  });

  const dashboard = JSON.parse(readFileSync(join(PROJECT, "conf/grafana/vango-edge.json"), "utf8"));
  const queries = dashboard.panels.flatMap((p) => p.targets.map((q) => [p.title, q.expr]));
  assert.ok(queries.length >= 16);
  for (const [title, expr] of queries) {
    const query = expr.replaceAll("$instance", ".*").replaceAll("$__rate_interval", "10s");
    await eventually(`${title}: ${query} returns data`, async () => {
      if (failed) throw failed;
      const rows = await ask(query);
      return rows.length > 0 && rows.some((r) => Number.isFinite(Number(r.value[1]))) ? true : JSON.stringify(rows);
    });
  }
  const rules = await (await fetch(`http://127.0.0.1:${port}/api/v1/rules`)).json();
  const bad = rules.data.groups.flatMap((g) => g.rules).filter((r) => r.lastError);
  assert.deepEqual(bad, []);
  console.log(`# ${queries.length} queries of the dashboard returned data`);
});
