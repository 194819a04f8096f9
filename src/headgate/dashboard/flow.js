// Which way do requests go? Endpoints, backends and replicas side by side, and lines between them as wide as the shares.

import {$, element, list, say, sayParts, show, state} from "./elements.js";
import * as words from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDEST = 26; // pixels, for everything that an endpoint gets
const LEAST = 2;
const MOST_NAMED = 8; // replicas with their names; more are dots

let drawn = {endpoints: new Map(), targets: new Map()};
let latest = null;

export function follow(overview) {
  latest = overview;
  const endpoints = list($("endpoints"), overview.endpoints, each => each.name, makeEndpoint, updateEndpoint);
  const targets = list($("targets"), overview.backends, each => each.tag, makeTarget, updateTarget);
  drawn = {endpoints, targets};
  const coming = $("coming");
  show(coming, overview.coming.length > 0);
  list(coming, overview.coming, each => each.backend, () => ({node: element("li")}), (entry, each) => say(entry.node, onItsWay(each)));
  const refused = Object.entries(overview.refused).map(([status, number]) => `${words.count(number)} with ${status}`);
  show($("refused"), refused.length > 0);
  say($("refused"), `Refused before they reached an endpoint, in the last 5 seconds: ${refused.join(", ")}`);
  draw();
}

function onItsWay(coming) {
  const text = `${coming.backend} is on its way: ${coming.ready} of ${words.several(coming.replicas, "new replica")} ready`;
  return coming.waits ? `${text}. ${coming.waits}` : text;
}

function makeEndpoint(endpoint) {
  const parts = {
    route: element("span", "route"),
    rate: element("b"),
    times: element("p", "soft parts"),
    failing: element("p", "bad"),
    none: element("p", "warn", "No backend has its traffic: it answers 503."),
    branches: element("ul", "unseen"),
  };
  const name = element("h3", "", endpoint.name);
  const rate = element("p", "", parts.rate, " req/s");
  return {node: element("li", "node", name, parts.route, rate, parts.times, parts.failing, parts.none, parts.branches), ...parts};
}

function updateEndpoint(parts, endpoint) {
  const rates = endpoint.rates;
  say(parts.route, endpoint.route === null ? "Python callers only" : `${endpoint.methods.join(", ")} ${endpoint.route}`);
  say(parts.rate, words.rate(rates && rates.per_s));
  sayParts(parts.times, [`p50 ${words.time(rates && rates.times.p50_s)}`, `p99 ${words.time(rates && rates.times.p99_s)}`]);
  show(parts.failing, Boolean(rates && rates.failed_per_s));
  if (rates && rates.failed_per_s) say(parts.failing, failing(rates, Object.keys(endpoint.shed)));
  show(parts.none, !endpoint.traffic.length);
  const branches = [
    ...endpoint.traffic.map(each => ({...each, text: `${words.share(each.share)} of requests go to ${each.backend}`})),
    ...endpoint.shadows.map(each => ({...each, text: `copies of ${words.share(each.share)} of requests go to ${each.backend}`})),
  ];
  list(parts.branches, branches, each => each.text, () => ({node: element("li")}), (entry, each) => say(entry.node, each.text));
}

function failing(rates, rules = []) {
  const statuses = Object.entries(rates.statuses).filter(([status]) => Number(status) >= 500).map(([status]) => status);
  const why = rules.length ? ` (${rules.join(", ")})` : "";
  return `${words.share(rates.failed_per_s / rates.per_s)} fail: ${statuses.join(", ")}${why}`;
}

function makeTarget(backend) {
  const parts = {
    state: element("span", "state"),
    rate: element("b"),
    waiting: element("p", "soft parts"),
    failing: element("p", "bad"),
    replicas: element("ul", "replicas"),
    more: element("p", "soft"),
  };
  parts.replicas.setAttribute("aria-label", `Replicas of ${backend.tag}`);
  const title = element("h3", "", backend.tag);
  const rate = element("p", "", parts.rate, " req/s");
  parts.card = element("div", "node", title, parts.state, rate, parts.waiting, parts.failing);
  parts.running = element("div", "running", parts.more, parts.replicas);
  return {node: element("li", "target", parts.card, parts.running), ...parts};
}

function updateTarget(parts, backend) {
  const rates = backend.rates;
  state(parts.state, backend.state);
  say(parts.rate, words.rate(rates && rates.per_s));
  sayParts(parts.waiting, [`${words.count(backend.queued)} queued`, `${words.count(backend.in_flight - backend.queued)} running`]);
  show(parts.failing, Boolean(rates && rates.failed_per_s));
  if (rates && rates.failed_per_s) say(parts.failing, failing(rates));
  const isMany = backend.replicas.length > MOST_NAMED;
  parts.replicas.classList.toggle("many", isMany);
  const others = Object.entries(backend.counts).filter(([name]) => name !== "ready");
  const counted = [`${backend.ready} of ${words.several(backend.wanted, "replica")} ready`, ...others.map(([name, number]) => `${number} ${name}`)];
  say(parts.more, counted.join(", "));
  list(parts.replicas, backend.replicas, each => each.id, makeReplica, updateReplica);
}

function makeReplica(replica) {
  const word = element("span", "soft");
  return {node: element("li", "state", element("span", "id", replica.id), word), word};
}

function updateReplica(parts, replica) {
  if (parts.node.dataset.state !== replica.state) parts.node.dataset.state = replica.state;
  say(parts.word, replica.state === "ready" ? words.age(replica.since_s) : replica.state);
  parts.node.title = `${replica.id}: ${replica.state}`;
}

// The lines.

function draw() {
  const frame = $("flow").getBoundingClientRect();
  if (!latest || !frame.width) return;
  // Everything is measured before anything is drawn: a layout in between may scroll the page, and move what is measured after it.
  const placed = links().map(link => ({...link, from: box(link.from, frame), to: box(link.to, frame)}));
  stack(placed, link => link.endpoint, link => link.from, "fromY", 0);
  stack(placed, link => link.backend, link => link.to, "toY", 14); // room for what is said of each
  const shapes = placed.map(curve);
  for (const [tag, parts] of drawn.targets) shapes.push(...stem(tag, box(parts.card, frame), box(parts.running, frame)));
  shapes.push(...placed.map(label)); // above the lines
  $("links").setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  list($("links"), shapes, each => each.key, makeShape, updateShape);
}

function makeShape({tag}) {
  return {node: document.createElementNS(SVG, tag)};
}

function updateShape({node}, {attributes, text}) {
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
  if (text !== undefined) say(node, text);
}

function links() {
  const found = [];
  for (const endpoint of latest.endpoints) {
    const from = drawn.endpoints.get(endpoint.name).node;
    for (const [branches, isShadow] of [[endpoint.traffic, false], [endpoint.shadows, true]]) {
      for (const branch of branches) {
        const to = drawn.targets.get(branch.backend);
        if (to) found.push({...branch, endpoint: endpoint.name, isShadow, from, to: to.card, width: LEAST + branch.share * (WIDEST - LEAST)});
      }
    }
  }
  return found;
}

function box(node, frame) {
  const found = node.getBoundingClientRect();
  return {left: found.left - frame.left, right: found.right - frame.left, top: found.top - frame.top, bottom: found.bottom - frame.top};
}

// Give the links that meet at one box a place each, beside its middle.
function stack(placed, groupOf, boxOf, name, least) {
  for (const group of grouped(placed, groupOf)) {
    const room = link => Math.max(link.width, least) + 3;
    const {top, bottom} = boxOf(group[0]);
    let at = (top + bottom) / 2 - group.reduce((sum, link) => sum + room(link), 0) / 2;
    for (const link of group) {
      link[name] = at + room(link) / 2;
      at += room(link);
    }
  }
}

function grouped(items, keyOf) {
  const groups = new Map();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return [...groups.values()];
}

function keyOf(link) {
  return JSON.stringify([link.endpoint, link.backend, link.isShadow]);
}

function curve(link) {
  const middle = (link.from.right + link.to.left) / 2;
  const path = `M${link.from.right} ${link.fromY} C${middle} ${link.fromY} ${middle} ${link.toY} ${link.to.left} ${link.toY}`;
  const isIdle = link.rates && link.rates.per_s === 0;
  const classes = `link${link.isShadow ? " shadow" : ""}${isIdle ? " idle" : ""}`;
  return {key: `curve ${keyOf(link)}`, tag: "path", attributes: {class: classes, d: path, "stroke-width": link.width}};
}

function label(link) {
  const isRoomy = link.to.left - link.from.right > 150;
  const live = link.rates && isRoomy ? ` · ${words.rate(link.rates.per_s)}/s` : "";
  const attributes = {class: "share", x: link.to.left - 6, y: link.toY + 4, "text-anchor": "end"};
  return {key: `label ${keyOf(link)}`, tag: "text", attributes, text: words.share(link.share) + live};
}

function stem(tag, card, running) {
  if (running.left < card.right) return []; // below it, on a narrow page
  const y = (card.top + card.bottom) / 2;
  return [{key: `stem ${tag}`, tag: "path", attributes: {class: "stem", d: `M${card.right} ${y} H${running.left - 4}`}}];
}

new ResizeObserver(draw).observe($("flow"));
