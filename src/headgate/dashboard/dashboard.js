// What does the page show, and where from? It follows the events of the ingress that it came from, while somebody sees it.

import {$, element, list, region, say, sayParts, sayTraceback, show, state, terms, traceback} from "./elements.js";
import * as changes from "./changes.js";
import * as flow from "./flow.js";
import * as words from "./words.js";

// The stream.

const SILENT_AFTER_S = 8; // the ingress says something every second, and every third while the controller is away
const RETRY_S = 1;

let source = null;
let retry = null;
let heardAt = 0;
let shownAt = null;

function listen() {
  stop();
  heardAt = performance.now();
  source = new EventSource("events");
  source.addEventListener("overview", event => { heard(); showOverview(JSON.parse(event.data)); });
  source.addEventListener("declared", event => { heard(); showDeclared(JSON.parse(event.data)); });
  source.addEventListener("away", () => { heard(); showAway(); });
  source.onerror = lost;
}

function heard() {
  heardAt = performance.now();
}

function lost() {
  stop();
  changes.lock(); // what answers there next may be another
  connection("lost", "Not connected", `This ingress doesn't answer, or too many look at it. It is asked again every second. ${since()}`);
  retry = setTimeout(listen, 1000 * RETRY_S);
}

function stop() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

setInterval(() => {
  if (source && performance.now() - heardAt > 1000 * SILENT_AFTER_S) lost();
}, 1000);
// Who doesn't see the page isn't told anything, and the instance isn't asked for it.
document.addEventListener("visibilitychange", () => (document.hidden ? stop() : listen()));
if (!document.hidden) listen();

// Its parts.

function connection(name, text, why = "") {
  state($("status"), name, text);
  document.body.classList.toggle("stale", Boolean(why));
  show($("banner"), Boolean(why));
  say($("banner"), why);
}

function since() {
  return shownAt ? `What is shown is of ${shownAt.toLocaleTimeString()}.` : "";
}

function showAway() {
  connection("away", "Controller away", `The controller doesn't answer. Requests are served as before; changes wait for it. ${since()}`);
}

function showOverview(overview) {
  shownAt = new Date();
  if (overview.ready) connection("ready", "Ready");
  else connection("unhealthy", "Not ready");
  const isEmpty = !overview.endpoints.length && !overview.backends.length && !overview.coming.length;
  say($("name"), overview.name);
  document.title = `${overview.ready || isEmpty ? "" : "Not ready: "}${overview.name} · Headgate`;
  sayParts($("facts"), facts(overview));
  say($("window"), `Headgate ${overview.version}. Rates and times are of the last 5 seconds; p99: 99 of 100 take no longer.`);
  showTotals(overview);
  show($("empty"), isEmpty);
  show($("traffic"), !isEmpty);
  show($("backends"), overview.backends.length > 0);
  show($("declared"), !isEmpty);
  if (!isEmpty) flow.follow(overview);
  showFailures(overview);
  list($("backend-list"), overview.backends, each => each.tag, makeBackend, updateBackend);
  changes.follow(overview);
}

function facts(overview) {
  const parts = [...overview.http_urls, words.several(overview.processes, "process", "processes"), words.bytes(overview.rss_bytes)];
  if (overview.cores !== null) parts.push(`${words.cores(overview.cores)} of a core`);
  return parts.filter(part => part && part !== "–");
}

// All requests.

const history = [];
const MOST_KEPT = 60;

function showTotals(overview) {
  const rates = overview.rates;
  const failed = rates && rates.per_s ? rates.failed_per_s / rates.per_s : rates && 0;
  terms($("totals"), [
    ["Requests/s", words.rate(rates && rates.per_s)],
    ["Failing", failed === null ? "–" : words.share(failed), failed ? "bad" : ""],
    ["p50", words.time(rates && rates.times.p50_s)],
    ["p99", words.time(rates && rates.times.p99_s)],
    ["Queued", words.count(overview.queued), overview.queued ? "warn" : ""],
    ["Running", words.count(overview.in_flight - overview.queued)],
  ]);
  if (rates) history.push(rates.per_s);
  if (history.length > MOST_KEPT) history.shift();
  spark($("totals").firstChild);
}

function spark(tile) {
  const namespace = "http://www.w3.org/2000/svg";
  let line = tile.querySelector("polyline");
  if (!line) {
    const svg = document.createElementNS(namespace, "svg");
    svg.setAttribute("class", "spark");
    svg.setAttribute("viewBox", `0 0 ${MOST_KEPT - 1} 30`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    line = document.createElementNS(namespace, "polyline");
    svg.append(line);
    tile.append(svg);
  }
  const most = Math.max(...history, 1);
  const first = MOST_KEPT - history.length;
  const points = history.map((rate, at) => `${first + at},${(29 - 27 * rate / most).toFixed(1)}`);
  line.setAttribute("points", history.some(rate => rate > 0) ? points.join(" ") : ""); // else it looks like a stray dash
}

// Failures.

function showFailures(overview) {
  show($("failures"), overview.failures.length > 0);
  say($("failures-hint"), overview.debug ? "" : "What was raised, and its traceback, is in the log under the request's id.");
  list($("failure-list"), overview.failures, failureKey, makeFailure, updateFailure);
}

function failureKey(failure) {
  return [failure.kind, failure.backend, failure.endpoint, failure.error].join("\n");
}

function makeFailure(failure) {
  const where = [failure.endpoint && `endpoint ${failure.endpoint}`, `backend ${failure.backend}`].filter(Boolean).join(", ");
  const parts = {
    title: element("b"),
    times: element("span", "times"),
    where: element("p", "soft parts"),
    message: element("p", "message"),
    traceback: traceback(`${failure.error || failure.kind}, ${where}`),
  };
  return {node: element("li", "", element("p", "", parts.title, " ", parts.times), parts.where, parts.message, parts.traceback.node), ...parts};
}

function updateFailure(parts, failure) {
  say(parts.title, whatFailed(failure));
  say(parts.times, failure.count > 1 ? `${words.count(failure.count)} times` : "");
  const where = [`${words.age(failure.ago_s)} ago`, failure.endpoint && `endpoint ${failure.endpoint}`, `backend ${failure.backend}`, failure.replica];
  if (failure.request_id) where.push(`request ${failure.request_id}`);
  sayParts(parts.where, where.filter(Boolean));
  show(parts.message, Boolean(failure.message) && failure.kind !== "ReplicaDiedError");
  say(parts.message, failure.message);
  sayTraceback(parts.traceback, failure.traceback);
}

function whatFailed(failure) {
  if (failure.kind === "ReplicaDiedError") return `A replica ended: ${failure.message}`;
  if (failure.kind === "ReplicaStartError") return "A replica did not start";
  return failure.kind === "UserCodeError" ? `A call raised ${failure.error}` : `A call failed: ${failure.error}`;
}

// Backends.

function makeBackend(backend) {
  const parts = {
    state: element("span", "state"),
    code: element("p", "soft"),
    reason: element("p", "reason"),
    figures: element("dl", "figures"),
    batches: element("div", "batches"),
    bars: element("ol", "bars"),
    batchNote: element("p", "soft"),
    rows: element("tbody"),
    summary: element("summary"),
  };
  const titles = ["Replica", "State", "Since", "CPU", "Memory", "GPUs"].map(title => {
    const cell = element("th", "", title);
    cell.scope = "col";
    return cell;
  });
  const head = element("tr", "", ...titles);
  parts.gpus = titles.at(-1);
  const table = region(element("div", "scroll", element("table", "", element("thead", "", head), parts.rows)), `Replicas of ${backend.tag}`);
  parts.batches.append(element("h4", "", "Batch sizes"), parts.batchNote, parts.bars);
  const heading = element("div", "heading", element("h3", "", backend.tag), parts.state);
  parts.details = element("details", "", parts.summary, table);
  const edit = changes.ofReplicas(backend.tag);
  return {node: element("article", "card", heading, parts.code, parts.reason, parts.figures, edit, parts.batches, parts.details), ...parts};
}

function updateBackend(parts, backend) {
  state(parts.state, backend.state);
  say(parts.code, backend.definition);
  show(parts.reason, Boolean(backend.reason));
  say(parts.reason, backend.reason);
  const pair = times => `${words.time(times.p50_s)} / ${words.time(times.p99_s)}`;
  const deaths = Object.entries(backend.deaths).map(([why, number]) => `${number} by ${why}`);
  const figures = [
    ["Replicas", `${backend.ready} / ${backend.wanted}`],
    ["Starts", backend.start_failures ? `${backend.starts}, ${backend.start_failures} failed` : words.count(backend.starts), backend.start_failures ? "bad" : ""],
    ["Deaths", deaths.length ? deaths.join(", ") : "none", deaths.length ? "bad" : ""],
    ["Run time p50 / p99", pair(backend.execution)],
    ["Queue p50 / p99", pair(backend.queue)],
  ];
  if (backend.max_batch_size > 1) figures.push(["Wait for batch p50 / p99", pair(backend.batch_wait)]);
  terms(parts.figures, figures);
  show(parts.batches, backend.max_batch_size > 1);
  if (backend.max_batch_size > 1) updateBatches(parts, backend);
  say(parts.summary, `${words.several(Object.values(backend.counts).reduce((sum, number) => sum + number, 0), "replica")} one by one`);
  show(parts.details, backend.replicas.length > 0);
  show(parts.gpus, backend.replicas.some(each => each.gpus.length > 0));
  list(parts.rows, backend.replicas, each => each.id, makeRow, (entry, replica) => updateRow(entry, replica, !parts.gpus.hidden));
}

function updateBatches(parts, backend) {
  const mean = backend.mean_batch;
  say(parts.batchNote, mean === null ? "None in the last 5 seconds." : `${mean.toFixed(1)} requests in the mean, of at most ${backend.max_batch_size}`);
  const counts = new Map(backend.batches);
  const most = Math.max(...counts.values(), 1);
  const sizes = [];
  for (let upTo = 1; upTo < 2 * backend.max_batch_size && sizes.length < 15; upTo *= 2) sizes.push([upTo, counts.get(upTo) ?? 0]);
  list(
    parts.bars,
    sizes,
    ([upTo]) => upTo,
    ([upTo]) => {
      const fill = element("span", "fill");
      const number = element("span", "number");
      const size = Math.min(upTo, backend.max_batch_size);
      const least = upTo < 4 ? "" : `${upTo / 2 + 1}–`;
      return {node: element("li", "", number, element("span", "track", fill), element("span", "size soft", least + size)), fill, number};
    },
    (entry, [, number]) => {
      entry.fill.style.height = `${100 * number / most}%`;
      say(entry.number, number ? words.count(number) : "");
    },
  );
}

function makeRow(replica) {
  const cells = Array.from({length: 5}, () => element("td"));
  const word = element("span", "state");
  cells[0].append(word);
  const name = element("th", "", replica.id);
  name.scope = "row";
  return {node: element("tr", "", name, ...cells), word, cells};
}

function updateRow({word, cells}, replica, hasGpus) {
  state(word, replica.state);
  say(cells[1], words.age(replica.since_s));
  say(cells[2], words.cores(replica.cores));
  say(cells[3], words.bytes(replica.rss_bytes));
  say(cells[4], replica.gpus.join(", ") || "–");
  show(cells[4], hasGpus);
}

// The declared state.

function showDeclared(text) {
  say($("declared-text"), text);
  show($("copy"), Boolean(navigator.clipboard));
}

$("copy").addEventListener("click", async () => {
  const isCopied = await navigator.clipboard.writeText($("declared-text").textContent).then(() => true, () => false);
  say($("copy"), isCopied ? "Copied" : "The browser forbids it");
  setTimeout(() => say($("copy"), "Copy"), 2000);
});
