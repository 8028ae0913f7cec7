const VIEWS = { overview: renderOverview, tree: renderTree, table: renderTable, layers: renderModelLayers,
    concept: renderConcept, compare: renderCompare };

async function unpack(name) {
  const packed = document.getElementById(`packed-${name}`);
  const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
  packed.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
}

// A library runs when it is first needed: megabytes of script would hold back the figures, which need none of it.
const libraries = {};
const library = (name) => (libraries[name] ??= unpack(name).then(async (found) => {
  const script = await found.text();
  await new Promise((resolve) => setTimeout(resolve)); // what is there already is painted first
  document.head.append(el("script", { textContent: script }));
}));

function tell(text) {
  const message = document.getElementById("message");
  message.textContent = text;
  message.hidden = !text;
}

let current; // the view that is shown, and its query
function redraw() {
  const [view, query] = current;
  const section = document.getElementById(`view-${view}`);
  const height = section.offsetHeight;
  section.style.minHeight = `${height}px`; // or the page would jump up while it is empty
  clear(section);
  const done = () => (section.style.minHeight = "");
  awaited.length = 0;
  return Promise.resolve(VIEWS[view](section, query)).then(() => Promise.all(awaited)).then(done, (error) => {
    done();
    tell(`This part of the report cannot be shown (${error.message}).`);
    console.error(error);
  });
}

function route() {
  const hash = location.hash.slice(1);
  const [first, search = ""] = hash.startsWith("concept=") ? ["concept", hash] : hash.split("?");
  const view = first in VIEWS ? first : "overview";
  current = [view, new URLSearchParams(search.replaceAll("+", "%2B"))];
  for (const name of Object.keys(VIEWS)) {
    const section = document.getElementById(`view-${name}`);
    if (name !== view) clear(section);
    section.hidden = name !== view;
  }
  for (const tab of document.querySelectorAll("nav a")) {
    if (tab.hash === `#${view}`) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  tell("");
  return redraw();
}

function setTheme(isDark) {
  document.documentElement.classList.toggle("dark", isDark);
  document.getElementById("theme").textContent = isDark ? "Light" : "Dark";
}

// What score and grades mean, by the rule that the pack was graded by.
function aboutGrades() {
  const { minTexts, firesEverywhere, findsTooLittle } = R.grading;
  const bounds = "1 is perfect, 0.01 is chance. Grade A: 0.5 or more, B: 0.2 or more, C: less";
  if (isOldRule()) return `Score: average precision at 1 % prevalence on held-out samples; ${bounds}.`;
  return "Score: average precision at 1 % prevalence of held-out texts that express the concept without naming it, " +
    `against all other held-out samples; ${bounds}; ungraded: fewer than ${minTexts} such texts. ` +
    `At most C: not ahead of the best control, or fires on ${percent(firesEverywhere)} of unrelated samples or more. ` +
    `At most B: a test F1 below ${findsTooLittle}. Names: the same score on texts that name the concept.`;
}

function setUp() {
  document.getElementById("label").textContent = shown(R.label, 80);
  const { store, settings } = R.about.provenance;
  const source = [store?.model?.id, `${R.about.family} lenses`,
      settings && `target F1 ${settings.target_f1}, ${settings.validation} validation`,
    store?.pack && `concepts of ${store.pack.name} ${store.pack.version ?? ""}`,
        store?.digest && `store ${store.digest}`, R.about.finished && `fitted ${R.about.finished}`];
  document.getElementById("source").textContent = shown(source.filter(Boolean).join(" · "), 400);
  document.getElementById("grading").textContent = aboutGrades();
  if (isOldRule() && GRADES.some((grade) => grade !== UNGRADED && countOf(R.summary, grade))) {
    const note = document.getElementById("old-rule");
    note.append(...say("This pack is graded by the rule of versions before 0.3: names count; fit again. Its grades and scores are over all held-out samples, those that name the concept included; `lenstrain fit` gives grades of today's rule."));
    note.hidden = false;
  }
  const go = document.getElementById("goto");
  // Thousands of options would make the page slow to open, and nobody asked yet.
  go.addEventListener("focus", () => document.getElementById("names").append(...C.name.slice(0,
      8000).map((_, i) => el("option", { value: nameOf(i, 80) }))), { once: true });
  go.addEventListener("change", () => {
    const wanted = go.value.trim().toLowerCase();
    const all = C.name.map((_, i) => nameOf(i, 80).toLowerCase());
    const found = [all.indexOf(wanted), all.findIndex((name) => name.startsWith(wanted)),
        all.findIndex((name) => name.includes(wanted))].find((i) => i >= 0);
    if (wanted && found !== undefined) open(found);
    else if (wanted) tell("No concept has such a name.");
    go.value = "";
  });
  document.getElementById("theme").addEventListener("click", () => {
    setTheme(!document.documentElement.classList.contains("dark"));
    redraw();
  });
}

async function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  if (typeof DecompressionStream === "undefined") {
    tell("This browser cannot unpack the data of the report: it needs Chromium 80, Firefox 113 or Safari 16.4, or a newer one.");
    return;
  }
  R = await (await unpack("overview")).json();
  C = R.columns;
  setUp();
  addEventListener("hashchange", () => {
    scrollTo(0, 0);
    route();
  });
  const drawn = route();
  document.documentElement.dataset.readable = Math.round(performance.now());
  await drawn;
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start().catch((error) => {
  tell(`The data of this report cannot be read (${error.message}): make it again.`);
  console.error(error);
});
