// What becomes of an edit, from the first move of a slider until the instance does so? What others change meanwhile is said, and
// neither their change nor the edit is lost unseen.

import * as access from "./access.js";
import {button, element, say, sayTraceback, show, traceback} from "./elements.js";

const WAIT = "The instance has yet to tell of it; until then this can't be moved.";
const TOLD_WITHIN_MS = 3000; // of what was applied, by the stream

// An edit of one thing, and the form for it. `of` says what it is an edit of:
//   name              of that, in words
//   fields            the element in which it is edited
//   update(value)     shows a value there, and `isPending`, whether it is an edit
//   parse(now)        the value for what is so now, as the instance says it
//   ask(value, base)  the page and the data of the request by which it becomes so, where `base` is so now
//   tell(value)       it in words
export class Edit {
  #of;
  #now; // as the instance said last
  #base; // what was so when the edit began, or when it was kept although others had changed that
  #value = null; // as edited; null: nothing is
  #applied = null; // what the instance does by now, although the stream has yet to say so
  #request = null; // the one under way

  constructor(of) {
    this.#of = of;
    this.fields = element("fieldset", "", of.fields);
    this.fields.setAttribute("aria-label", of.name);
    this.keep = button("Keep my edit", () => this.#keep());
    this.others = element("span");
    this.notice = element("p", "notice", this.others, " ", this.keep);
    this.apply = element("button", "main", "Apply");
    this.reset = button("Reset", () => this.#reset());
    this.stop = button("Don't wait", () => this.#request?.abort());
    this.said = element("p", "said");
    this.said.setAttribute("role", "status");
    this.traceback = traceback(of.name);
    this.notice.setAttribute("role", "status");
    const buttons = element("p", "buttons", this.apply, this.reset, this.stop);
    this.node = element("form", "edit", this.fields, this.notice, buttons, this.said, this.traceback.node);
    this.node.addEventListener("submit", event => {
      event.preventDefault();
      this.#apply();
    });
  }

  get isPending() {
    return this.#value !== null;
  }

  // What is to be seen: the edit, or else what is so.
  get value() {
    return this.#value ?? this.#applied?.value ?? this.#of.parse(this.#now);
  }

  // The instance says what is so.
  follow(now) {
    const isNew = this.#now === undefined || !isSame(now, this.#now);
    this.#now = now;
    if (this.#applied && (isNew || performance.now() > this.#applied.until)) {
      if (this.#isAskedToWait) this.#say(this.#applied.done);
      this.#applied = null;
    }
    if (!this.#request && this.isPending && isSame(this.#value, this.#of.parse(now))) this.#value = null; // it is so, whoever did it
    this.#show();
  }

  // The user has moved something, which is of no use while the instance is at it, nor before the stream has told what came of it.
  change(value) {
    if (this.#applied) {
      this.#say(`${this.#applied.done} ${WAIT}`);
    } else if (!this.#request) {
      if (!this.isPending) this.#base = this.#now;
      this.#value = isSame(value, this.#of.parse(this.#base)) ? null : value;
      this.#say("");
    }
    this.#show();
  }

  #keep() {
    this.#base = this.#now;
    this.#show();
    this.apply.focus();
  }

  #reset() {
    if (this.#request) return;
    this.#value = null;
    this.#say("");
    this.#show();
  }

  get #isAskedToWait() {
    return this.said.textContent.endsWith(WAIT);
  }

  get #isBusy() {
    return this.#request !== null || this.#applied !== null;
  }

  get #isOvertaken() {
    return this.isPending && !this.#request && !isSame(this.#base, this.#now);
  }

  async #apply() {
    if (!this.isPending || this.#request || this.#isOvertaken) return;
    const value = this.#value;
    this.#request = new AbortController();
    this.#say("Under way …");
    this.#show();
    const [page, data] = this.#of.ask(value, this.#base);
    const answer = await access.change(page, data, this.#request.signal);
    const isGivenUp = this.#request.signal.aborted;
    this.#request = null;
    if (answer.isDone) {
      const isTold = isSame(value, this.#of.parse(this.#now));
      const done = [`Done: ${this.#of.tell(value)}.`, ...answer.warnings].join(" ");
      this.#applied = isTold ? null : {value, done, until: performance.now() + TOLD_WITHIN_MS};
      this.#value = null;
      this.#say(done);
    } else if (isGivenUp) {
      this.#say("Not waited for any longer. What waits for room is given up; what has begun goes on.");
    } else {
      this.#say(answer.text, answer.traceback);
    }
    this.#show();
  }

  #say(text, traceback = null) {
    say(this.said, text);
    this.said.classList.toggle("bad", traceback !== null);
    sayTraceback(this.traceback, traceback ?? "");
  }

  #show() {
    this.#of.update(this.value, this.isPending);
    this.fields.setAttribute("aria-disabled", String(this.#isBusy)); // not `disabled`: who stands there with the keyboard is to stay
    show(this.notice, this.#isOvertaken);
    say(this.others, this.#isOvertaken ? `Others have changed this meanwhile: ${this.#of.tell(this.#of.parse(this.#now))}.` : "");
    this.apply.setAttribute("aria-disabled", String(!this.isPending || this.#request !== null || this.#isOvertaken));
    this.reset.setAttribute("aria-disabled", String(!this.isPending || this.#request !== null));
    if (!this.#request && document.activeElement === this.stop) this.apply.focus(); // who stood there stays in the form
    show(this.stop, this.#request !== null);
    this.node.classList.toggle("pending", this.isPending);
  }
}

function isSame(one, other) {
  return written(one) === written(other);
}

function written(value) {
  const named = value instanceof Map ? [...value] : value instanceof Object ? Object.entries(value) : null;
  return JSON.stringify(named?.sort() ?? value);
}
