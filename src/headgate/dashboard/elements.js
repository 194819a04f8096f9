// How does the page follow what it is told, without making anew what somebody reads, has opened, or stands on with the keyboard?

export function $(id) {
  return document.getElementById(id);
}

// An element with classes, and children: elements, or text.
export function element(tag, classes = "", ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

export function button(text, act) {
  const made = element("button", "", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The same element as a part of the page that is scrolled where it is long: found by its name, and moved by keyboard, too.
export function region(node, name) {
  node.tabIndex = 0;
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", name);
  return node;
}

// A traceback, closed at first, and not there before it is said. `of` tells it from others: two regions of a page don't have the same name.
export function traceback(of) {
  const text = region(element("pre"), `Traceback: ${of}`);
  const node = element("details", "", element("summary", "", "Traceback"), text);
  show(node, false);
  return {node, text};
}

export function sayTraceback({node, text}, lines) {
  show(node, Boolean(lines));
  say(text, lines);
}

// Several things on one line, each of which stays whole where the line breaks.
export function sayParts(node, texts) {
  list(node, texts.map((text, place) => [place, text]), ([place]) => place, () => ({node: element("span")}), (entry, [, text]) => say(entry.node, `${text} `));
}

export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

const listed = new WeakMap();

// Keep the children of `parent` as `items` say, in their order, each under its key. `make` returns an element, and what `update` is to
// be called with, together with the item.
export function list(parent, items, keyOf, make, update) {
  const before = listed.get(parent) ?? new Map();
  const now = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const entry = before.get(key) ?? make(item);
    now.set(key, entry);
    before.delete(key);
    if (entry.node === place) place = place.nextSibling;
    else parent.insertBefore(entry.node, place);
    update(entry, item);
  }
  for (const entry of before.values()) entry.node.remove();
  listed.set(parent, now);
  return now;
}

// Terms and what is to be said of them, as `<dl>`; a pair is [term, text] or [term, text, classes].
export function terms(parent, pairs) {
  list(
    parent,
    pairs,
    ([term]) => term,
    ([term]) => {
      const value = element("dd");
      return {node: element("div", "", element("dt", "", term), value), value};
    },
    (entry, [, text, classes = ""]) => {
      say(entry.value, text);
      if (entry.value.className !== classes) entry.value.className = classes;
    },
  );
}

// A state in a word, with a dot beside it.
export function state(node, name, text = name) {
  if (node.dataset.state !== name) node.dataset.state = name;
  say(node, text);
}
