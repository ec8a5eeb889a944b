// The form of a record, made from the schema: a labelled control per feature, with its unit and the range seen in training.

import { el, show } from "./dom.js";
import { asText, isObject, readValue, valueOf } from "./record.js";
import { number } from "./words.js";

const MANY_FEATURES = 60; // beyond it the parts start folded
const NUM_SHOWN_CODES = 5;

/** The form: its controls, and what to do with them. `onEdit(modality, feature, value)` hears of every change that can be read. */
export class RecordForm {
  constructor(node, schema, { onEdit, onUnreadable }) {
    this.fields = schema.modalities.flatMap((modality, m) =>
      modality.features.map((feature, f) => new Field(modality, feature, `value-${m}-${f}`, { onEdit, onUnreadable })),
    );
    const open = this.fields.length <= MANY_FEATURES;
    this.parts = schema.modalities.map((modality) => ({ modality, note: el("p", { class: "hint", hidden: true }) }));
    show(
      node,
      this.parts.map(({ modality, note }) =>
        el(
          "details",
          { open },
          el("summary", {}, modality.name),
          note,
          el("div", { class: "fields" }, this.fields.filter((field) => field.modality === modality).map((field) => field.row)),
        ),
      ),
    );
  }

  /** Puts a record's values into the controls. */
  show(record) {
    for (const { modality, note } of this.parts) {
      const values = record[modality.name];
      note.hidden = values === undefined || values === null || isObject(values);
      note.textContent = "Given as a flat vector, which cannot be shown here. A value entered below replaces all of it.";
    }
    for (const field of this.fields) field.show(valueOf(record, field.modality, field.feature));
  }

  /** The first field whose text cannot be read, with what is expected; undefined where all can be. */
  unreadable() {
    return this.fields.find((field) => field.problem !== null);
  }

  /** Marks the fields that a refusal names and takes all other marks away. */
  mark(places) {
    for (const field of this.fields) field.mark(places.find((place) => place.path === field.path)?.msg ?? null);
  }

  /** The field at a path such as `labs.crea`. */
  at(path) {
    return this.fields.find((field) => field.path === path);
  }
}

class Field {
  constructor(modality, feature, id, listeners) {
    Object.assign(this, { modality, feature, listeners, problem: null, path: `${modality.name}.${feature.name}` });
    this.control = control(feature, { id, "aria-describedby": `${id}-hint ${id}-remark`, on: { input: () => this.edited() } });
    this.remark = el("span", { id: `${id}-remark`, class: "remark" });
    const label = feature.kind === "array" ? el("span", { class: "label" }, feature.name) : el("label", { for: id }, feature.name);
    this.row = el("div", { class: "field" }, label, this.control, el("span", { id: `${id}-hint`, class: "hint" }, hint(feature)), this.remark);
  }

  /** Puts the cursor here, unfolding what hides it. */
  focus() {
    this.row.closest("details").open = true;
    this.control.focus();
  }

  show(value) {
    const { feature, control } = this;
    if (feature.kind === "array") {
      control.hidden = value === undefined;
      this.remark.textContent = value === undefined ? "not given; paste a record that holds it" : "given";
      return;
    }
    const text = asText(feature, value);
    if (feature.kind === "categorical") keepUnknown(control, text, feature);
    control.value = text;
    this.problem = null;
    this.mark(null);
  }

  edited() {
    const { modality, feature, control, listeners } = this;
    try {
      const value = feature.kind === "array" ? undefined : readValue(feature, control.value);
      if (feature.kind === "array") this.show(undefined);
      this.problem = null;
      listeners.onEdit(modality, feature, value);
    } catch (error) {
      this.problem = error.message;
      listeners.onUnreadable();
    }
    this.mark(this.problem);
  }

  mark(msg) {
    if (this.feature.kind === "array") return;
    if (msg === null) this.control.removeAttribute("aria-invalid");
    else this.control.setAttribute("aria-invalid", "true");
    this.remark.textContent = msg ?? this.outside();
  }

  outside() {
    const { feature, control } = this;
    const value = Number(control.value);
    const inside = feature.kind !== "numeric" || control.value.trim() === "" || (value >= feature.minimum && value <= feature.maximum);
    return inside ? "" : "outside the range seen in training";
  }
}

function control(feature, attributes) {
  const plain = { ...attributes, autocomplete: "off" };
  switch (feature.kind) {
    case "numeric":
      return el("input", { ...plain, type: "text", inputmode: "decimal" });
    case "categorical":
      return el("select", plain, el("option", { value: "" }, "not known"), feature.vocabulary.map((word) => el("option", { value: word }, word)));
    case "array": {
      const { on, ...others } = attributes;
      return el("button", { ...others, type: "button", on: { click: on.input } }, `Take ${feature.name} out`);
    }
    default:
      return el("textarea", { ...plain, rows: feature.kind === "text" ? 4 : 2, spellcheck: "false" });
  }
}

/** A category that training never saw stays what was sent: the service says what it makes of it. */
function keepUnknown(select, text, feature) {
  select.querySelector("option[data-unknown]")?.remove();
  if (text !== "" && !feature.vocabulary.includes(text)) {
    select.append(el("option", { value: text, "data-unknown": true }, `${text} (not seen in training)`));
  }
}

function hint(feature) {
  switch (feature.kind) {
    case "numeric":
      return [feature.unit, measured(feature), `training saw ${number(feature.minimum)} to ${number(feature.maximum)}`].filter(Boolean).join(", ");
    case "categorical":
      return "";
    case "codes":
      return `codes, separated by ${feature.separator}; the model knows ${feature.vocabulary.length}: ${shown(feature.vocabulary)}`;
    case "text":
      return `text; the model knows ${feature.vocabulary.length} words`;
    default:
      return `an array of ${feature.shape.join(" x ")} numbers`;
  }
}

function measured({ summary, lookback_hours: hours }) {
  const which = summary === undefined || summary === "last" ? "" : summary;
  return hours ? `${which || "last"} of ${number(hours)} h` : which;
}

const shown = (words) => words.slice(0, NUM_SHOWN_CODES).join(", ") + (words.length > NUM_SHOWN_CODES ? ", ..." : "");
