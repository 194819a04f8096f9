// How are figures said? Each takes a number, or null where it isn't known.

const NONE = "–";
const SPACE = "\u00a0"; // a number and its unit stay together
const plain = new Intl.NumberFormat("en", {maximumFractionDigits: 0});

export function count(number) {
  return number === null ? NONE : plain.format(number);
}

export function rate(perSecond) {
  if (perSecond === null) return NONE;
  if (perSecond >= 9.95) return plain.format(perSecond);
  return perSecond === 0 ? "0" : perSecond < 0.05 ? "<0.1" : perSecond.toFixed(1);
}

export function share(part) {
  const number = 100 * part;
  if (number > 0 && number < 0.1) return `<${percent(0.1)}`;
  return percent(Number(number.toFixed(number < 10 || number > 99 ? 1 : 0)));
}

export function percent(number) {
  return `${number}${SPACE}%`;
}

// A number with three digits and its unit, such as "3.21 ms".
export function time(seconds) {
  if (seconds === null) return NONE;
  const [factor, unit] = seconds < 1e-3 ? [1e6, "µs"] : seconds < 1 ? [1e3, "ms"] : [1, "s"];
  const number = seconds * factor;
  return `${number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0)}${SPACE}${unit}`;
}

export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)}${SPACE}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}${SPACE}min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)}${SPACE}h`;
  return `${Math.floor(seconds / 86400)}${SPACE}d`;
}

export function bytes(number) {
  if (!number) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(number) / 10), units.length - 1);
  const size = number / 1024 ** power;
  return `${size.toFixed(size < 9.95 && power ? 1 : 0)}${SPACE}${units[power]}`;
}

export function cores(used) {
  return used === null ? NONE : share(used);
}

export function several(number, one, more = `${one}s`) {
  return `${plain.format(number)} ${number === 1 ? one : more}`;
}
