// The table, by DataTables. It reads strings with an ampersand as HTML when it searches: so it gets none.

const tableState = { text: "", grade: "", level: "", modelLayer: "", show: "", attribute: "", order: null };
const searchable = (text) => text.replace(/[&<>]/g, " ");

const SHOW = {
  graduated: ["graduated", (i) => C.graduated[i]],
  "not-graduated": ["not graduated", (i) => !C.graduated[i]],
  hungry: ["asked for more samples", (i) => C.hungry[i]],
  unbeaten: ["no better than a control", (i) => C.unbeaten[i]],
  everywhere: ["fire everywhere", (i) => C.everywhere[i]],
  uncertain: ["grade uncertain", (i) => C.uncertain[i]],
  capped: ["grade capped", (i) => C.capped[i]],
  ungraded: ["ungraded", (i) => C.grade[i] === UNGRADED],
};

const UPWARDS = new Set(["Concept", "Level", "Model layer", "Grade", "Graduated"]); // others show the best first

// What one or two texts say is no grade: graded lenses come first.
const gradedFirst = (value, i) => (value !== null && C.grade[i] === UNGRADED ? value - 3 : value);

const number = (title, about, value, text) => ({ title, about, value, text: text || ((i) => fixed(value(i))) });
const COLUMNS = [
  { title: "Concept", about: "What the lens detects", node: (i) => link(i),
      string: (i) => `${nameOf(i, 200)} ${shown(C.id[i], 200)}` },
  number("Level", "Level of abstraction: 0 is the most general", (i) => C.level[i], (i) => String(C.level[i])),
  number("Model layer", "Transformer block that the lens reads, 0-based", (i) => C.model_layers[i][0] ?? -1,
      (i) => C.model_layers[i].join("+") || "text"),
  { title: "Grade", about: "A: score 0.5 or more, B: 0.2 or more; ? where the interval crosses a boundary; capped: something speaks against the lens, whatever its score. Point at a grade to see what",
      node: (i) => el("span", {}, badgeOf(i, C.uncertain[i]), C.capped[i] && el("span", { className: "quiet", title: shown(C.reason[i], 300) }, " capped")),
      string: (i) => C.grade[i] },
  number("Score", "Average precision at 1 % prevalence; by today's rule, of texts that do not name the concept",
      (i) => gradedFirst(C.score[i], i), (i) => fixed(C.score[i])),
  number("95 %", "Interval of the score, sorted by its lower end", (i) => gradedFirst(C.low[i], i),
      (i) => (C.low[i] === null ? "–" : `${fixed(C.low[i])}–${fixed(C.high[i])}`)),
  number("Names", "Name detection: the same score on texts that name the concept", (i) => C.score_named[i]),
  number("Test F1", "On held-out samples, both classes weighing alike", (i) => C.test_f1[i]),
  number("F1 unnamed", "Test F1 on samples that do not name the concept", (i) => C.f1_unnamed[i]),
  number("Control", "Best score of what knows nothing of the concept; ! where the lens is no better",
      (i) => C.control[i], (i) => fixed(C.control[i]) + (C.unbeaten[i] ? "!" : "")),
  number("First", "Share of its samples on which the lens leads its level", (i) => C.first[i],
      (i) => percent(C.first[i])),
  number("Test texts", "Distinct test texts of the concept; in brackets those that do not name it, which the grade rests on",
      (i) => (C.n_test[i] === null ? null : C.n_test[i] + (C.n_test_unnamed[i] ?? 0) / 1e6), testTexts),
  number("Samples", "Positive training samples", (i) => C.n_samples[i], (i) => String(C.n_samples[i] ?? "–")),
  number("Graduated", "Iteration at which the lens reached the target F1",
      (i) => (C.graduated[i] ? C.iterations[i] : 1e6), (i) => (C.graduated[i] ? `at ${C.iterations[i] ?? "–"}` : "no")),
];

async function renderTable(section, query) {
  for (const key of ["grade", "level", "modelLayer", "show", "attribute"]) if (query.size) tableState[key] = query.get(key) || "";
  const distinct = (values) => [...new Set(values)].sort((a, b) => a - b).map((value) => [String(value),
      String(value)]);
  const any = (options) => [["", "any"], ...options];
  const known = [...new Set(C.attributes.flat())].sort();
  let table;
  const update = (key) => (value) => {
    tableState[key] = value;
    if (key === "text") table.search(searchable(value));
    table.draw();
  };
  const search = el("input", { type: "search", value: tableState.text, placeholder: "part of a name" });
  search.addEventListener("input", () => update("text")(search.value));
  section.append(el("h2", {}, "All lenses: click a heading to sort, a name to open its page"),
      el("div", { className: "filters" },
    el("label", {}, "Concept", search),
    select("Grade", any(GRADES.map((g) => [g, gradeWord(g)])), tableState.grade, update("grade")),
    select("Level of abstraction", any(distinct(concepts().map((i) => C.level[i]))), tableState.level, update("level")),
    select("Model layer", any(distinct(concepts().flatMap((i) => C.model_layers[i]))), tableState.modelLayer,
        update("modelLayer")),
    known.length > 0 && select("Attribute", any(known.map((text) => [text, shown(text, 60)])), tableState.attribute,
        update("attribute")),
    select("Show", [["", "all lenses"], ...Object.entries(SHOW).map(([key, [text]]) => [key, text])], tableState.show,
        update("show"))));
  const keep = (_, i) =>
    (!tableState.grade || C.grade[i] === tableState.grade) &&
    (!tableState.level || C.level[i] === Number(tableState.level)) &&
    (!tableState.modelLayer || C.model_layers[i].includes(Number(tableState.modelLayer))) &&
    (!tableState.attribute || C.attributes[i].includes(tableState.attribute)) &&
    (!tableState.show || SHOW[tableState.show][1](i));
  const columns = COLUMNS.map(({ title, about, value, text, node, string }) => ({
    title, type: value ? "num" : "string", searchable: title === "Concept",
    orderSequence: UPWARDS.has(title) ? ["asc", "desc"] : ["desc", "asc"],
    createdCell: (cell) => (cell.dir = "auto"),
    data: null,
    render: (i, kind) => {
      if (kind === "display") return node ? node(i) : document.createTextNode(text(i));
      return value ? value(i) ?? -9 : searchable(string(i)).toLowerCase();
    },
    about,
  }));
  const element = el("table", { className: "compact stripe" });
  section.append(el("div", { className: "wide" }, element));
  await library("tables");
  if (!element.isConnected) return; // somebody went elsewhere meanwhile
  table = new DataTable(element, {
    data: concepts(), columns, order: tableState.order || [[4, "desc"]], autoWidth: false, deferRender: true,
        pageLength: 25,
    lengthMenu: [25, 100, 500], language: { info: "_START_ to _END_ of _TOTAL_ lenses", infoFiltered: "(of _MAX_)",
        emptyTable: "no lens", zeroRecords: "no lens is like that", infoEmpty: "no lens", lengthMenu: "_MENU_ a page" },
    layout: { topStart: null, topEnd: null, bottomStart: "info", bottom: "pageLength", bottomEnd: "paging" },
  });
  table.columns().every(function () {
    this.header().title = COLUMNS[this.index()].about;
  });
  table.on("order", () => (tableState.order = table.order().map((by) => [by[0], by[1]])));
  table.search.fixed("filters", keep);
  table.search(searchable(tableState.text)).draw();
}
