// When can something be changed on the page, and what? Once it has the admin token; else there are no sliders.

import * as access from "./access.js";
import {$, button, element, list, say, show} from "./elements.js";
import {Replicas, Traffic} from "./sliders.js";

const MOST_OPEN = 3; // endpoints whose sliders are open from the beginning
let isOffered = false; // there is a token to be given, and something to change
const replicas = new Map(); // by tag
let traffic = new Map(); // by endpoint

// The form for the replicas of a backend, for its card.
export function ofReplicas(tag) {
  const made = new Replicas(tag);
  replicas.set(tag, made);
  return made.node;
}

export function follow(overview) {
  isOffered = overview.takes_changes && overview.backends.length > 0;
  if (!overview.takes_changes) access.lock();
  const tags = overview.backends.map(backend => backend.tag);
  for (const backend of overview.backends) replicas.get(backend.tag).follow(backend.wanted);
  for (const [tag, one] of replicas) {
    if (!tags.includes(tag)) forget(replicas, tag, one, `The backend ${tag} was deleted by others, and with it your edit of its replicas.`);
  }
  const before = traffic;
  const make = endpoint => makeTraffic(endpoint, overview.endpoints.length <= MOST_OPEN);
  const now = list($("splits"), overview.endpoints, endpoint => endpoint.name, make, (one, endpoint) => one.made.follow(endpoint.traffic, tags));
  traffic = new Map([...now].map(([name, one]) => [name, one.made]));
  for (const [name, one] of before) {
    if (!traffic.has(name)) forget(before, name, one, `The endpoint ${name} was deleted by others, and with it your edit of its traffic.`);
  }
  showWhatIsOpen();
}

function makeTraffic(endpoint, isOpen) {
  const made = new Traffic(endpoint.name);
  made.details.open = isOpen;
  return {node: made.node, made};
}

function forget(known, key, one, text) {
  known.delete(key);
  if (!one.edit.isPending) return;
  const read = button("OK", () => said.remove());
  const said = element("p", "banner", text, " ", read);
  $("lost").append(said);
}

export function lock() {
  access.lock();
  showWhatIsOpen();
}

function showWhatIsOpen() {
  const isOpen = access.isOpen();
  const stood = document.activeElement;
  show($("change"), isOffered);
  say($("change"), isOpen ? "Lock" : "Make changes");
  show($("splits"), isOpen && traffic.size > 0);
  for (const one of replicas.values()) show(one.node, isOpen);
  if (!stood.checkVisibility()) $("change").focus(); // by which it comes back
}

// The admin token.

$("change").addEventListener("click", () => {
  if (access.isOpen()) lock();
  else askForToken("");
});

let wayBack = null; // where with the keyboard somebody stood when the token was refused

function askForToken(why) {
  const isReadByOthers = access.isReadByOthers();
  show($("unlock-why"), !isReadByOthers);
  show($("unlock-never"), isReadByOthers);
  show($("unlock-fields"), !isReadByOthers);
  show($("unlock-submit"), !isReadByOthers);
  say($("unlock-cancel"), isReadByOthers ? "Close" : "Cancel");
  say($("unlock-said"), why);
  $("token").value = "";
  if (!$("unlock").open) $("unlock").showModal();
}

$("unlock-cancel").addEventListener("click", () => $("unlock").close());
$("unlock").addEventListener("close", () => {
  $("token").value = "";
  if (access.isOpen()) wayBack?.focus();
  wayBack = null;
});

$("unlock-form").addEventListener("submit", async event => {
  event.preventDefault();
  const answer = await access.unlock($("token").value.trim());
  if (answer.isDone) $("unlock").close();
  else say($("unlock-said"), answer.text);
  showWhatIsOpen();
});

access.whenRefused(answer => {
  wayBack = document.activeElement;
  showWhatIsOpen();
  askForToken(`${answer.text} Your edit is kept.`);
});
