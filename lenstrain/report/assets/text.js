// What a pack says reaches the page as text nodes, never as HTML, and plotly as text in which nothing is markup.

const HIDDEN = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/gu;
const PILED = /(\p{M}{3})(\p{M}{2,})/gu; // no script piles up more than three marks; a hundred cover the lines above
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]/;

const byNumber = (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;

// A text with what is invisible, or turns the direction of writing, shown by number; cut to a length.
function shown(text, length = Infinity, keepLines = false) {
  const marked = (part) =>
    part
      .replace(PILED, (_, kept, more) => `${kept}[${Array.from(more).length} more marks]`)
      .replace(HIDDEN, (c) => (keepLines && (c === "\n" || c === "\t") ? c : byNumber(c)));
  if (text.length <= length) return marked(text);
  return `${marked(Array.from(text.slice(0, 2 * length)).slice(0, length - 1).join(""))}…`;
}

// For plotly, which reads a part of HTML in every string: as what it is, in its own direction.
function plotText(text, length = 40) {
  const safe = shown(text, length).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  return RIGHT_TO_LEFT.test(safe) ? `\u2068${safe}\u2069` : safe;
}

// An element: properties, or attributes where their names have a dash, and children that are nodes or texts.
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits = 2) =>
  (value === null || value === undefined ? "–" : `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(digits)}`);
const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
const mean = (values) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
};
const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// A sentence of this report, with what stands between backticks as code.
const say = (text) => text.split("`").map((part, k) => (k % 2 ? el("code", {}, part) : part));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// --- concepts ---------------------------------------------------------------------------------------------------------

let R; // the report, as `Report.overview` made it
let C; // its columns, by name
const nameOf = (i, length = 60) => shown(C.name[i], length).trim() || "(no name)";
const concepts = () => Array.from({ length: R.nLenses }, (_, i) => i); // those that have a lens
const address = (i) => `#concept=${encodeURIComponent(C.id[i])}`;
const link = (i, length = 60) => el("a", { href: address(i) }, el("bdi", {}, nameOf(i, length)));

// --- grades -----------------------------------------------------------------------------------------------------------

const UNGRADED = "U"; // of a lens that has no grade; a concept without a lens has ""
const GRADES = ["A", "B", "C", UNGRADED];
const gradesThere = () => GRADES.filter((grade) => grade !== UNGRADED || C.grade.includes(grade)); // what charts show
const gradeWord = (grade) => (grade === UNGRADED ? "ungraded" : grade || "–");
const gradeName = (grade) => (grade === UNGRADED ? "ungraded" : grade ? `grade ${grade}` : "no lens");
const countOf = (summary, grade) => summary.grades[gradeWord(grade)] ?? 0;
const badge = (grade, uncertain = false, reason = "") =>
  el("span", { className: `badge ${grade}`, title: gradeName(grade) + (reason ? `: ${shown(reason, 300)}` : "") },
    gradeWord(grade) + (uncertain ? "?" : ""));
const badgeOf = (i, uncertain = false) => badge(C.grade[i], uncertain, C.reason[i]);
const isOldRule = () => R.summary.grading_rule < R.grading.rule;
// Distinct test texts, and of those the ones that do not name the concept; packs of the first rule know no such ones.
const testTexts = (i) => (C.n_test[i] === null ? "–"
  : `${C.n_test[i]}${C.n_test_unnamed[i] === null ? "" : ` (${C.n_test_unnamed[i]})`}`);
const list = (numbers, className = "plain inline") =>
  el("ul", { className }, numbers.map((i) => el("li", {}, link(i), " ", badgeOf(i))));

function select(label, options, value, onChange) {
  const box = el("select", {}, options.map(([key, text]) => el("option", { value: key }, text)));
  box.value = value;
  box.addEventListener("change", () => onChange(box.value));
  return el("label", {}, label, box);
}
