// Records: the examples, what was pasted, single values, and what changed. Knows the schema and nothing of the page.

/** The records to choose from: the bundle's example, the same without each modality, and none. */
export function examples(example, schema) {
  const without = (name) => Object.fromEntries(Object.entries(example).filter(([key]) => key !== name));
  const fewer = schema.missing === "reject" || schema.modalities.length < 2 ? [] : schema.modalities;
  return [
    { title: "The bundle's example", record: example },
    ...fewer.map(({ name }) => ({ title: `The example without ${name}`, record: without(name) })),
    { title: "An empty form", record: {} },
  ];
}

/** The records in a text: one record, a list, or a request. Raises an Error that says what is wrong. */
export function readText(text, schema) {
  const document = parse(text);
  const found = Array.isArray(document) ? document : Array.isArray(document?.instances) ? document.instances : [document];
  if (found.length === 0 || !found.every(isObject)) throw new Error("Expected a record: an object with a part for each modality.");
  return found.map((record, position) => ({
    title: `Pasted record ${position + 1}${found.length > 1 ? ` of ${found.length}` : ""}`,
    record: Object.fromEntries(Object.entries(record).map(([name, values]) => [name, named(values, modalityOf(schema, name))])),
  }));
}

function parse(text) {
  let isFinite = true; // 1e999 is read as infinity, which would be sent as null: not measured
  const look = (_, value) => {
    isFinite &&= typeof value !== "number" || Number.isFinite(value);
    return value;
  };
  let document;
  try {
    document = JSON.parse(text, look);
  } catch {
    throw new Error("This is not JSON."); // the parser's own words repeat what was pasted
  }
  if (!isFinite) throw new Error("A number is too large.");
  return document;
}

export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

const modalityOf = (schema, name) => schema.modalities.find((modality) => modality.name === name);

/** Number of columns of a feature in a flat vector. */
export function width(feature) {
  if (feature.kind === "array") return feature.shape.reduce((product, size) => product * size, 1);
  return feature.kind === "codes" || feature.kind === "text" ? feature.vocabulary.length : 1;
}

/** A flat vector as named features, where that can be said; else as it is, and the service judges it. */
function named(values, modality) {
  if (!Array.isArray(values) || modality === undefined || modality.features.some(({ kind }) => kind === "text")) return values;
  if (modality.features.reduce((sum, feature) => sum + width(feature), 0) !== values.length) return values;
  let start = 0;
  const pairs = modality.features.map((feature) => {
    const cells = values.slice(start, (start += width(feature)));
    return [feature.name, fromCells(feature, cells)];
  });
  return pairs.some(([, value]) => value === undefined) ? values : Object.fromEntries(pairs.filter(([, value]) => value !== null));
}

function fromCells(feature, cells) {
  if (feature.kind === "array") return cells;
  if (feature.kind === "codes") {
    return cells.every((cell) => cell === 0 || cell === 1) ? feature.vocabulary.filter((_, position) => cells[position] === 1) : undefined;
  }
  return feature.kind === "categorical" && cells[0] !== null ? feature.vocabulary[cells[0]] : cells[0];
}

/** A value of a record; undefined where there is none. */
export function valueOf(record, modality, feature) {
  const values = record[modality.name];
  return isObject(values) && Object.hasOwn(values, feature.name) ? (values[feature.name] ?? undefined) : undefined;
}

/** The record with another value; undefined takes the value out. */
export function withValue(record, modality, feature, value) {
  const before = isObject(record[modality.name]) ? Object.entries(record[modality.name]) : [];
  const others = before.filter(([name]) => name !== feature.name);
  const values = Object.fromEntries(value === undefined ? others : [...others, [feature.name, value]]);
  const rest = Object.entries(record).filter(([name]) => name !== modality.name);
  return Object.fromEntries(Object.keys(values).length === 0 ? rest : [...rest, [modality.name, values]]);
}

/** What a form's text means for a feature; undefined for nothing. Raises an Error that says what is expected. */
export function readValue(feature, text) {
  const plain = text.trim();
  if (plain === "") return undefined;
  if (feature.kind !== "numeric") return feature.kind === "text" ? text : plain;
  const number = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
  if (!Number.isFinite(number)) throw new Error("must be a number, with a point for decimals");
  return number;
}

/** A value as a form's text. */
export function asText(feature, value) {
  if (value === undefined) return "";
  if (feature.kind === "codes" && Array.isArray(value)) return value.join(feature.separator);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** The features whose values differ, as `{place, before, after}`. */
export function changes(before, after, schema) {
  return schema.modalities.flatMap((modality) =>
    modality.features.flatMap((feature) => {
      const [old, now] = [before, after].map((record) => shortText(feature, valueOf(record, modality, feature)));
      return old === now ? [] : [{ place: `${modality.name}.${feature.name}`, before: old, after: now }];
    }),
  );
}

const MAX_LENGTH = 40;

function shortText(feature, value) {
  if (value !== undefined && feature.kind === "array") return "an array";
  const text = asText(feature, value);
  if (text === "") return "not known";
  return text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}...` : text;
}
