// May this page change anything, and how does it ask for that? By the admin token, which it keeps in memory alone and sends with each request.

let token = "";
let tellRefused = () => {};

export function isOpen() {
  return token !== "";
}

export function lock() {
  token = "";
}

// Whether others could read on the way what is sent: over plain HTTP, unless it stays on this machine.
export function isReadByOthers() {
  return !window.isSecureContext;
}

// From now on the page may change things, if that is the token. Returns what was answered.
export async function unlock(given) {
  const answer = await ask("token", given, undefined, undefined);
  if (answer.isDone) token = given;
  return answer;
}

// Call that with the answer where the token isn't right any more.
export function whenRefused(tell) {
  tellRefused = tell;
}

// Ask for a change. Returns {isDone, status, text, traceback, warnings}; status 0: there was no answer.
export async function change(page, data, signal) {
  const given = token;
  const answer = await ask(page, given, JSON.stringify(data), signal);
  if (answer.status === 401 && given === token) { // else another was given meanwhile
    lock();
    tellRefused(answer);
  }
  return answer;
}

async function ask(page, given, body, signal) {
  const answer = {isDone: false, status: 0, text: "", traceback: "", warnings: []};
  try {
    const got = await fetch(page, {method: "POST", headers: {Authorization: `Bearer ${inBytes(given)}`}, body, signal, redirect: "error"});
    answer.status = got.status;
    answer.isDone = got.ok;
    const said = got.status === 204 ? {} : await got.json();
    answer.warnings = said.warnings ?? [];
    answer.text = sentence(said.detail ?? "");
    answer.traceback = said.traceback ?? "";
  } catch {
    const what = answer.status ? `The answer has status ${answer.status}, and isn't Headgate's` : "There was no answer";
    answer.text = `${what}; whether it was done isn't known, but what is shown is so.`;
    answer.isDone = false;
  }
  return answer;
}

function sentence(text) {
  return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// Headers are bytes, each said by a character: these are those of UTF-8.
function inBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}
