// How do shares stay one in all when one of them is moved? They are whole tenths of a percent, so that what is shown is what is sent.

export const WHOLE = 1000;

// Shares of 1 by name, such as {v1: 0.7, v2: 0.3}, as a Map of tenths of a percent.
export function tenths(shares) {
  return apportion(Object.entries(shares), WHOLE);
}

// The other way round.
export function shares(parts) {
  return Object.fromEntries([...parts].map(([name, part]) => [name, part / WHOLE]));
}

// The same with `to` for one of them. The others share what is left as they did before, or equally where none had any.
export function moved(parts, name, to) {
  const others = [...parts].filter(([other]) => other !== name);
  if (!others.length) return new Map([[name, WHOLE]]);
  const isNone = others.every(([, part]) => part === 0);
  const rest = apportion(isNone ? others.map(([other]) => [other, 1]) : others, WHOLE - to);
  return new Map([...parts.keys()].map(other => [other, other === name ? to : rest.get(other)]));
}

// Whole parts of a whole, as the weights say; what rounding leaves over goes to those from which it took most.
function apportion(weights, whole) {
  const sum = weights.reduce((total, [, weight]) => total + weight, 0);
  const exact = weights.map(([name, weight]) => [name, sum ? weight / sum * whole : 0]);
  const parts = new Map(exact.map(([name, part]) => [name, Math.floor(part + 1e-9)]));
  let left = sum ? whole - [...parts.values()].reduce((total, part) => total + part, 0) : 0;
  for (const [name] of [...exact].sort(([a, one], [b, other]) => other - parts.get(b) - (one - parts.get(a)))) {
    if (left-- <= 0) break;
    parts.set(name, parts.get(name) + 1);
  }
  return parts;
}
