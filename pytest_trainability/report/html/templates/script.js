"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const list = $("#checks"), filter = $("#filter"), sort = $("#sort"), hide = $("#hide"), help = $("#help");
  const checks = $$("#checks > .check"), initial = [...checks];

  // State: filter, order, "hide passing" and the open checks live in the fragment of the address.
  function stored() {
    const given = new URLSearchParams(location.hash.slice(1));
    filter.value = given.get("q") || "";
    sort.value = given.get("sort") || "";
    if (sort.selectedIndex < 0) sort.value = "";
    hide.checked = given.get("hide") === "1";
    const open = given.get("open");
    if (open !== null) for (const check of checks) check.open = open.split(",").includes(check.id.slice(2));
    apply();
    const first = open && document.getElementById("c-" + open.split(",")[0]);
    if (first) first.scrollIntoView();
  }
  function store() {
    const state = new URLSearchParams();
    if (filter.value.trim()) state.set("q", filter.value.trim());
    if (sort.value) state.set("sort", sort.value);
    if (hide.checked) state.set("hide", "1");
    const open = checks.filter(check => check.open).map(check => check.id.slice(2));
    if (open.length <= 20) state.set("open", open.join(","));
    history.replaceState(null, "", "#" + state.toString().replaceAll("%3A", ":").replaceAll("%2C", ","));
  }

  // The filter: terms such as is:failed, measure:log_gain or words, all of which must match.
  const terms = text => [...text.matchAll(/(-?)(?:(\w+):)?(?:"([^"]*)"|(\S+))/g)].map(found =>
    ({ not: found[1] === "-", key: (found[2] || "").toLowerCase(), wanted: (found[3] ?? found[4]).toLowerCase().split(",").filter(Boolean) }));
  const texts = new Map(checks.map(check => [check, (check.dataset.id + " " + $(".who", check).textContent).toLowerCase()]));
  const part = (check, selector) => ($(selector, check)?.textContent || "").toLowerCase();
  function matches(check, { key, wanted }) {
    const words = name => (check.dataset[name] || "").toLowerCase().split(" ");
    if (key === "is") return wanted.some(word => words("is").includes(word));
    if (key === "measure") return wanted.some(word => words("measures").includes(word));
    if (key === "fails") return wanted.some(word => words("fails").includes(word));
    if (key === "model" || key === "file") return wanted.some(word => part(check, ".who small").includes(word));
    return wanted.some(word => texts.get(check).includes(key ? key + ":" + word : word));
  }
  const value = (check, name) => { const found = parseFloat(check.dataset[name].replace("inf", "Infinity")); return Number.isNaN(found) ? Infinity : found; };
  const orders = {
    order: (a, b) => value(a, "order") - value(b, "order"),
    name: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", { numeric: true }),
    gain: (a, b) => compare(value(a, "gain"), value(b, "gain")),
    margin: (a, b) => compare(value(a, "margin"), value(b, "margin")),
    seconds: (a, b) => value(b, "seconds") - value(a, "seconds"),
  };
  const compare = (a, b) => a === b ? 0 : a < b ? -1 : 1;
  let ordered = "";
  function apply() {
    const wanted = terms(filter.value);
    let shown = 0;
    for (const check of checks) {
      const fits = wanted.every(term => matches(check, term) !== term.not) && !(hide.checked && check.dataset.is.split(" ").includes("passing"));
      check.hidden = !fits;
      shown += fits;
    }
    if (sort.value !== ordered) {
      checks.splice(0, checks.length, ...initial);
      if (orders[sort.value]) checks.sort(orders[sort.value]);
      list.append(...checks);
      ordered = sort.value;
    }
    $("#shown").textContent = `${shown} of ${checks.length} shown`;
    $("#none").hidden = shown > 0 || !checks.length;
  }
  const changed = () => { apply(); store(); };
  filter.addEventListener("input", changed);
  sort.addEventListener("change", changed);
  hide.addEventListener("change", changed);
  $("#clear").addEventListener("click", () => { filter.value = ""; hide.checked = false; changed(); filter.focus(); });
  $(".controls").addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", stored);

  // Checks that are compressed are unpacked when they are opened.
  async function unpack(check) {
    const packed = $(":scope > .body > script", check);
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    packed.parentElement.innerHTML = await new Response(stream).text();
    prepare(check);
  }
  list.addEventListener("toggle", event => {
    if (!event.target.matches("#checks > .check")) return;
    if (event.target.open) unpack(event.target);
    store();
  }, true);
  const prepare = within => { if (navigator.clipboard || document.execCommand) for (const button of $$("[data-copy]", within)) button.hidden = false; };

  // Charts, tables and the module tree of one axis are linked: k is the place of a step or parameter.
  const row = (body, axis, k) => $(`table[data-axis="${axis}"] tbody`, body)?.rows[k];
  function text(found) {
    if (!found) return "";
    const heads = $$("thead th", found.closest("table"));
    return [...found.cells].map((cell, i) => i ? cell.textContent && `${heads[i].textContent.replace(/, .*/, "")} ${cell.textContent}` : cell.textContent).filter(Boolean).join(" · ");
  }
  function show(body, axis, ranges) {
    for (const figure of $$(`figure[data-axis="${axis}"]`, body)) {
      const count = +figure.dataset.count;
      for (const cursor of $$(".cursor", figure)) {
        cursor.hidden = !ranges.length;
        if (!ranges.length) continue;
        const first = ranges[0][0], last = ranges.at(-1)[1];
        cursor.style.left = 100 * first / count + "%";
        cursor.style.width = 100 * (last - first + 1) / count + "%";
      }
      const single = ranges.length === 1 && ranges[0][0] === ranges[0][1];
      $(".readout", figure).textContent = single ? text(row(body, axis, ranges[0][0])) : "";
    }
    const within = k => ranges.some(([first, last]) => first <= k && k <= last);
    for (const on of $$(`table[data-axis="${axis}"] tr.on`, body)) on.classList.remove("on");
    for (const [first, last] of ranges) for (let k = first; k <= last; k++) row(body, axis, k)?.classList.add("on");
    if (axis === "steps") for (const node of $$("[data-steps]", body))
      node.classList.toggle("on", spans(node.dataset.steps).some(([first, last]) => { for (let k = first; k <= last; k++) if (within(k)) return true; return false; }));
  }
  const spans = text => text.split(",").map(span => { const [first, last] = span.split("-").map(Number); return [first, last ?? first]; });
  // What an event points at: [axis, ranges], or null.
  function target(event) {
    const node = event.target.closest?.("[data-steps]");
    if (node) return ["steps", spans(node.dataset.steps)];
    const line = event.target.closest?.("table[data-axis] tbody tr");
    if (line) { const k = line.sectionRowIndex; return [line.closest("table").dataset.axis, [[k, k]]]; }
    const figure = event.target.closest?.("figure[data-axis]"), plot = event.target.closest?.(".plot, .heat");
    if (!figure || !plot) return null;
    const box = plot.getBoundingClientRect(), count = +figure.dataset.count;
    const k = Math.min(Math.max(Math.floor((event.clientX - box.left) / box.width * count), 0), count - 1);
    return [figure.dataset.axis, [[k, k]]];
  }
  let last = "";
  list.addEventListener("pointermove", event => {
    const body = event.target.closest(".body"), found = body && target(event);
    const key = found ? JSON.stringify(found) : "";
    if (key === last || body?.classList.contains("pinned")) return;
    last = key;
    if (body) found ? show(body, ...found) : clear(body);
  });
  const clear = body => { body.classList.remove("pinned"); for (const axis of new Set($$("figure[data-axis]", body).map(figure => figure.dataset.axis))) show(body, axis, []); };
  list.addEventListener("click", event => {
    const button = event.target.closest("[data-copy]");
    if (button) return copy(button);
    const body = event.target.closest(".body"), found = body && target(event);
    if (!found) return;
    const pinned = body.classList.contains("pinned") && body.dataset.pin === JSON.stringify(found);
    clear(body);
    if (pinned) return;
    show(body, ...found);
    body.dataset.pin = JSON.stringify(found);
    body.classList.add("pinned");
    const of = event.target.closest("figure") && row(body, found[0], found[1][0][0]);
    if (of?.closest("details").open) of.scrollIntoView({ block: "nearest" });
  });
  async function copy(button) {
    const code = $("code", button.parentElement);
    try { await navigator.clipboard.writeText(code.textContent); }
    catch { getSelection().selectAllChildren(code); document.execCommand("copy"); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // Keys.
  const visible = () => checks.filter(check => !check.hidden);
  function move(by, wanted = () => true) {
    const all = visible(), at = all.indexOf(document.activeElement?.closest("#checks > .check"));
    let next = at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by;
    while (all[next] && !wanted(all[next])) next += by;
    if (!all[next] && by > 0 && at >= 0 && wanted.length) next = all.findIndex(wanted);
    if (!all[next]) return;
    $("summary", all[next]).focus();
    all[next].scrollIntoView({ block: "nearest" });
  }
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { document.activeElement?.blur(); $$(".body.pinned").forEach(clear); return; }
    const plot = event.target.closest?.(".plot[tabindex]");
    if (plot && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      const figure = plot.closest("figure"), count = +figure.dataset.count, before = figure.dataset.at;
      const k = event.key === "Home" ? 0 : event.key === "End" ? count - 1 : before === undefined ? 0 : +before + (event.key === "ArrowRight" ? 1 : -1);
      figure.dataset.at = Math.min(Math.max(k, 0), count - 1);
      show(plot.closest(".body"), figure.dataset.axis, [[+figure.dataset.at, +figure.dataset.at]]);
      event.preventDefault();
      return;
    }
    if (event.target.closest?.("input[type=search], select, textarea, dialog")) return;
    const keys = { "/": () => { filter.focus(); filter.select(); }, "?": () => help.showModal(), j: () => move(1), k: () => move(-1), f: () => move(1, check => check.classList.contains("failed")) };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  $("#help-button").addEventListener("click", () => help.showModal());

  // Light, dark, or as the system.
  const theme = $("#theme"), themes = ["auto", "light", "dark"];
  function dress(name) {
    if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    theme.textContent = "Theme: " + name;
    try { localStorage.setItem("trainability-theme", name); } catch { /* a browser without storage forgets it */ }
  }
  let chosen = "auto";
  try { chosen = localStorage.getItem("trainability-theme"); } catch { /* as above */ }
  dress(themes.includes(chosen) ? chosen : "auto");
  theme.addEventListener("click", () => dress(themes[(themes.indexOf(theme.textContent.slice(7)) + 1) % 3]));

  // On paper, failed checks are open.
  let opened = [];
  addEventListener("beforeprint", () => { opened = checks.filter(check => check.classList.contains("failed") && !check.open && !$(":scope > .body > script", check)); for (const check of opened) check.open = true; });
  addEventListener("afterprint", () => { for (const check of opened) check.open = false; });

  theme.hidden = $(".controls").hidden = false;
  prepare(document);
  stored();
})();
