// Elements from names, attributes and children. Strings become text nodes and nothing else: no data is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes that are false, null or undefined are left out; `on` holds listeners. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element, for pictures of what the text beside them says: hidden from screen readers. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A picture of `width` x `height` units that takes its place's width. */
export function picture(width, height, className, ...children) {
  const box = `0 0 ${width} ${height}`;
  const attributes = { viewBox: box, class: className, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" };
  return svg("svg", attributes, ...children);
}

function fill(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The page's element of this id. */
export const byId = (id) => document.getElementById(id);

/** Puts children in the place of what an element holds. */
export function show(node, ...children) {
  node.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  node.hidden = false;
}
