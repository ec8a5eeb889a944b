// Numbers and names as a person reads them.

/** A probability in percent that never claims certainty. */
export function percent(probability) {
  const rounded = Math.round(100 * probability);
  if (rounded === 0) return "less than 1 %";
  return rounded === 100 ? "more than 99 %" : `${rounded} %`;
}

/** Three digits, as many as a reader can use. */
export const number = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "not known");

/** With its sign, to two digits. */
export const signed = (value) => `${value > 0 ? "+" : value < 0 ? "\u2212" : ""}${Number(Math.abs(value).toPrecision(2))}`;

/** A share in percent. */
export const share = (value) => `${Math.round(100 * value)} %`;

/** `a, b and c`. */
export function list(words) {
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words.join("");
}

const spaced = (name) => name.replaceAll("_", " ");

/** What an expert is about. */
export function expertTitle(expert, modalities) {
  if (expert.modality !== null) return `${spaced(expert.modality)} on its own`;
  const names = list(modalities.map(spaced));
  return { synergy: `the interplay of ${names}`, redundancy: `what ${names} have in common` }[expert.kind] ?? "the model as a whole";
}

/** Which way a contribution points. */
export function direction(contribution, label, task) {
  if (contribution === 0) return "points neither way";
  if (task.kind === "regression") return `${contribution > 0 ? "above" : "below"} the average of ${number(task.training_mean)}`;
  if (contribution > 0) return `towards ${label}`;
  const [first, second] = task.labels;
  return task.kind === "binary" ? `towards ${label === first ? second : first}` : `away from ${label}`;
}

/** What a prediction states, in a few words. */
export function statement(prediction, task) {
  if (task.kind === "regression") return `Predicted ${task.outcome}: ${number(prediction.probability)}`;
  if (task.kind === "binary") return `Risk of ${task.outcome}: ${percent(prediction.probability)}`;
  return `Predicted ${task.outcome}: ${prediction.label} (${percent(prediction.probability)})`;
}

/** How a prediction differs from the baseline's; null where it does not or where both cannot be compared as numbers. */
export function change(prediction, baseline, task) {
  const difference = prediction.probability - baseline.probability;
  if (task.kind === "regression") return difference === 0 ? "as before" : `${signed(difference)} against ${number(baseline.probability)} before`;
  if (prediction.label !== baseline.label && task.kind !== "binary") {
    return `before: ${baseline.label} (${percent(baseline.probability)})`;
  }
  const points = Number((100 * difference).toFixed(1));
  return points === 0 ? `as before, ${percent(baseline.probability)}` : `${signed(points)} points against ${percent(baseline.probability)} before`;
}
