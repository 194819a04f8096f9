// How are traffic and numbers of replicas changed? By sliders, of which those of an endpoint are one in all.

import {Edit} from "./edit.js";
import {button, element, list, say, show} from "./elements.js";
import {WHOLE, moved, shares, tenths} from "./shares.js";
import * as words from "./words.js";

const USUAL_REPLICAS = 8; // a slider goes so far, or twice as far as what is so; by its number any can be given

function slider(name, least, step) {
  const range = element("input");
  const number = element("input", "amount");
  range.type = "range";
  number.type = "number";
  number.required = true;
  range.step = step < 1 ? "any" : step; // a tenth of a percent is nothing that one meets with a slider
  number.step = step;
  range.min = number.min = least;
  range.setAttribute("aria-label", name);
  number.setAttribute("aria-label", `${name}, as a number`);
  return {range, number, isTyped: false};
}

// Call `move(number)` while a slider or its number is moved, and `rest()` when that is over.
function listen(parts, move, rest) {
  const {range, number} = parts;
  range.addEventListener("input", () => move(Math.round(range.valueAsNumber)));
  number.addEventListener("input", () => {
    parts.isTyped = true;
    if (number.checkValidity()) move(number.valueAsNumber);
  });
  for (const input of [range, number]) {
    input.addEventListener("change", () => {
      parts.isTyped = !number.checkValidity(); // what is no number stays to be seen, and the form isn't sent with it
      rest();
    });
  }
}

function put(parts, value, text) {
  parts.range.valueAsNumber = value;
  parts.range.setAttribute("aria-valuetext", text);
  if (parts.isTyped && document.activeElement === parts.number) return; // what is typed isn't written over meanwhile
  parts.isTyped = false;
  parts.number.valueAsNumber = value;
}

// Of the traffic of one endpoint.
export class Traffic {
  #rows = element("ul", "split");
  #adding = element("select");
  #add = button("Add", () => this.#addChosen());
  #others = element("p", "adding", element("label", "", "Send a share to ", this.#adding), " ", this.#add);
  #grip = null; // while one is moved: which, and how all were before, so that the way there makes no difference
  #now = {};
  #tags = []; // of all backends

  constructor(name) {
    this.edit = new Edit({
      name: `Traffic of ${name}`,
      fields: element("div", "", this.#rows, this.#others),
      update: (value, isPending) => this.#update(value, isPending),
      parse: tenths,
      ask: (value, base) => ["traffic", {endpoint: name, weights: shares(value), based_on: base}],
      tell: value => [...value].map(([tag, part]) => `${tag} ${words.percent(part / 10)}`).join(", ") || "no backend",
    });
    this.state = element("span", "soft");
    this.details = element("details", "", element("summary", "", `Split the traffic of ${name} `, this.state), this.edit.node);
    this.node = element("li", "", this.details);
  }

  follow(traffic, tags) {
    this.#now = Object.fromEntries(traffic.map(branch => [branch.backend, branch.share]));
    this.#tags = tags;
    this.edit.follow(this.#now);
  }

  #update(value, isPending) {
    say(this.state, isPending ? "(edited, not applied)" : "");
    list(this.#rows, value, ([tag]) => tag, ([tag]) => this.#makeRow(tag), (row, [tag, part]) => {
      const percent = part / 10;
      put(row, percent, words.percent(percent));
      row.range.disabled = row.number.disabled = value.size === 1;
      say(row.now, Object.hasOwn(this.#now, tag) ? `now ${words.share(this.#now[tag])}` : "new");
    });
    const rest = this.#tags.filter(tag => !value.has(tag));
    list(this.#adding, ["", ...rest], tag => tag, makeOption, () => {});
    show(this.#others, rest.length > 0);
  }

  #makeRow(tag) {
    const row = {...slider(`Share of ${tag}, in percent`, 0, 0.1), now: element("span", "soft now")};
    row.range.max = row.number.max = 100;
    row.node = element("li", "", element("span", "name", tag), row.range, element("span", "percent", row.number, " %"), row.now);
    listen(row, percent => this.#move(tag, Math.round(10 * percent)), () => this.#rest());
    return row;
  }

  #move(tag, part) {
    if (this.#grip?.tag !== tag || !this.edit.isPending) this.#grip = {tag, parts: this.edit.value};
    this.edit.change(moved(this.#grip.parts, tag, part));
  }

  #rest() {
    this.#grip = null;
    this.#update(this.edit.value, this.edit.isPending);
  }

  // By a button, since a closed list is gone through with the arrow keys, each of which chooses.
  #addChosen() {
    const parts = this.edit.value;
    const tag = this.#adding.value;
    if (!tag || parts.has(tag)) return;
    this.edit.change(new Map([...parts, [tag, parts.size ? 0 : WHOLE]]));
    this.#rows.lastElementChild.querySelector(".amount").focus(); // its share is what is given next
  }
}

function makeOption(tag) {
  const node = element("option", "", tag || "choose a backend");
  node.value = tag;
  return {node};
}

// Of the number of replicas of one backend.
export class Replicas {
  #parts;

  constructor(tag) {
    this.#parts = slider(`Replicas of ${tag}`, 1, 1);
    listen(this.#parts, number => this.edit.change(number), () => this.#update(this.edit.value));
    this.edit = new Edit({
      name: `Replicas of ${tag}`,
      fields: element("div", "count", element("span", "name", "Replicas"), this.#parts.range, this.#parts.number),
      update: value => this.#update(value),
      parse: now => now,
      ask: (value, base) => ["replicas", {backend: tag, num_replicas: value, based_on: base}],
      tell: value => words.several(value, "replica"),
    });
    this.node = this.edit.node;
  }

  follow(wanted) {
    const most = Math.max(USUAL_REPLICAS, 2 * wanted, this.edit.isPending ? this.edit.value : 0);
    if (Number(this.#parts.range.max) !== most) this.#parts.range.max = most;
    this.edit.follow(wanted);
  }

  #update(value) {
    if (value > Number(this.#parts.range.max)) this.#parts.range.max = value;
    put(this.#parts, value, words.several(value, "replica"));
  }
}
