// Every concept is a field of its parent; one with several parents stands below the first.

const treeState = { shape: "treemap", zoomed: "" }; // zoomed: id of the field on top; empty for the root
const FEW = 400; // fields that are drawn all at once
const DEPTH = 3; // rows below the one zoomed to that are drawn of more

function fieldsOfTree() {
  const n = C.id.length;
  const ids = ["root"], labels = ["all concepts"], parents = [""], grades = [""], numbers = [-1];
  const add = (id, label, parent, grade, number) => {
    ids.push(id); labels.push(label); parents.push(parent); grades.push(grade); numbers.push(number);
  };
  if (R.tree.is_flat) {
    // Nothing is known of who is above whom: by level of abstraction and grade it is still a picture.
    for (const level of [...new Set(C.level)].sort((a, b) => a - b)) {
      add(`L${level}`, `level ${level}`, "root", "", -1);
      for (const grade of [...GRADES, ""])
        if (C.grade.some((g, i) => g === grade && C.level[i] === level))
          add(`L${level}${grade || "-"}`, gradeName(grade), `L${level}`, grade, -1);
    }
    for (let i = 0; i < n; i++) add(`c${i}`, C.name[i], `L${C.level[i]}${C.grade[i] || "-"}`, C.grade[i], i);
  } else {
    for (let i = 0; i < n; i++)
      add(`c${i}`, C.name[i], R.tree.parents[i].length ? `c${R.tree.parents[i][0]}` : "root", C.grade[i], i);
  }
  return { ids, labels, parents, grades, numbers };
}

function countLeaves({ ids, parents }) {
  const place = new Map(ids.map((id, k) => [id, k]));
  const hasChildren = new Set(parents);
  const size = ids.map((id) => (hasChildren.has(id) ? 0 : 1));
  ids.forEach((id, k) => {
    if (hasChildren.has(id)) return;
    for (let above = place.get(parents[k]); above !== undefined; above = place.get(parents[above])) size[above] += 1;
  });
  return { size, hasChildren };
}

// plotly makes an element of every field, shown or not: of thousands, it is given those near the one zoomed to.
function nearby({ ids, parents, ...rest }, size, top) {
  const place = new Map(ids.map((id, k) => [id, k]));
  const below = new Map(ids.map((id) => [id, []]));
  ids.forEach((id, k) => k && below.get(parents[k]).push(id));
  const kept = [];
  for (let id = top; id; id = parents[place.get(id)]) kept.unshift(id);
  for (let depth = 0, row = [top]; depth < DEPTH; depth++) kept.push(...(row = row.flatMap((id) => below.get(id))));
  const pick = (values) => kept.map((id) => values[place.get(id)]);
  const others = Object.fromEntries(Object.entries(rest).map(([key, values]) => [key, pick(values)]));
  return [{ ids: kept, parents: pick(parents), ...others }, pick(size)];
}

function renderTree(section) {
  const whole = fieldsOfTree();
  const { size: sizes, hasChildren } = countLeaves(whole);
  const few = whole.ids.length <= FEW;
  const top = treeState.zoomed || "root";
  const [all, size] = few ? [whole, sizes] : nearby(whole, sizes, top);
  const picked = el("p", { className: "quiet", role: "status" });
  const describe = (k) => {
    const i = all.numbers[k];
    picked.replaceChildren(...(i < 0 ? ["Click a field to zoom in, the bar above to zoom out; a click on a field without fields opens its page."]
      : ["Open the page of ", link(i), ` (level ${C.level[i]}, ${gradeName(C.grade[i])}${C.reason[i] ? `: ${shown(C.reason[i], 200)}` : ""}).`]));
  };
  const grade = (k) => all.grades[k];
  // A long word gets a line of its own where there is room: plotly writes what is too wide too small to be read.
  const isTall = (k) => grade(k) === UNGRADED && treeState.shape === "treemap" && !hasChildren.has(all.ids[k]);
  const labels = all.labels.map((label, k) => plotText(label.trim() || "(no name)",
      36) + (all.numbers[k] >= 0 ? `${isTall(k) ? "<br>" : " · "}${gradeWord(grade(k))}` : ""));
  const hover = all.labels.map((label, k) => {
    const i = all.numbers[k];
    const below = hasChildren.has(all.ids[k]) ? `<br>${plural(size[k], "concept")} without children below` : "";
    if (i < 0) return plotText(label, 60) + below;
    const score = C.grade[i] ? `${gradeName(C.grade[i])}, score ${fixed(C.score[i])}, test F1 ${fixed(C.test_f1[i])}` : "no lens";
    return `${plotText(label, 60)}<br>level ${C.level[i]} · ${score}${below}`;
  });
  const ofGrades = (suffix) => GRADES.map((g) => [g, colour(g + suffix)]);
  const colours = { ...Object.fromEntries(ofGrades("")), "": colour("track") };
  const inks = { ...Object.fromEntries(ofGrades("-ink")), "": colour("ink") };
  section.append(el("div", { className: "filters" },
    select("Shape", [["treemap", "treemap"], ["icicle", "icicle"], ["sunburst", "sunburst"]], treeState.shape,
        (shape) => {
      treeState.shape = shape;
      redraw();
    }),
    el("p", {}, GRADES.map((g) => (g === UNGRADED ? [badge(g), "  "] : [badge(g), ` grade ${g}  `])), el("span", { className: "badge" }, "–"), " no lens")),
        picked);
  describe(all.ids.indexOf(top));
  const trace = {
    type: treeState.shape, ids: all.ids, labels, parents: all.parents, values: size,
    branchvalues: "total", textinfo: "label", hovertext: hover, hoverinfo: "text", level: treeState.zoomed,
        sort: treeState.shape !== "icicle",
    maxdepth: -1, marker: { colors: all.grades.map((g) => colours[g]), line: { color: colour("page"), width: 1 } },
    textfont: { color: all.grades.map((g) => inks[g]) }, insidetextfont: { color: all.grades.map((g) => inks[g]) },
    outsidetextfont: { color: colour("ink") }, pathbar: { thickness: 24 }, root: { color: colour("track") },
    tiling: treeState.shape === "treemap" ? { pad: 1 } : treeState.shape === "icicle" ? { pad: 1,
        orientation: isNarrow() ? "v" : "h" } : {},
  };
  if (treeState.shape === "sunburst") { delete trace.tiling; delete trace.pathbar; }
  const height = Math.max(420, Math.min(760, window.innerHeight - 300));
  const click = (event) => {
    const id = event.points[0].id;
    const k = all.ids.indexOf(id);
    if (!hasChildren.has(id)) {
      open(all.numbers[k]);
      return false;
    }
    const next = id === (treeState.zoomed || "root") ? all.parents[k] : id; // on the field zoomed to: out again
    treeState.zoomed = next === "root" ? "" : next;
    if (few) describe(all.ids.indexOf(next || "root"));
    else redraw();
    return few;
  };
  chart(section, "Concept tree: each field is a concept as large as what is below it; its colour and the word behind its name are the grade of its lens",
    [trace], { margin: { l: 2, r: 2, t: 4, b: 4 }, ...(few ? {} : { uniformtext: { minsize: 9, mode: "hide" } }) },
    { height, tools: false, on: { [`plotly_${treeState.shape}click`]: click }, note: R.tree.is_flat
      ? (R.hasStore ? "No concept of this store is above another: the fields are levels of abstraction and grades."
        : "The hierarchy is in the store, which this report was made without: the fields are levels of abstraction and grades. " +
          "`lenstrain report PACK --store STORE` shows who is above whom.")
      : R.tree.parents.some((above) => above.length > 1) ? "A concept with several parents stands below the first of them." : null });
}
