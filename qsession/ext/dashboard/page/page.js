// The page of the dashboard. All that comes from outside goes in as text, never as HTML.

const KEPT = 120; // points of a line
const PATIENCE = 3000; // ms without a stream before the page says so
const AGAIN = 5000; // ms until it asks again after a refusal
const WAITERS = 5; // that are listed
const SVG = "http://www.w3.org/2000/svg";

const main = document.getElementById("databases");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
const template = document.getElementById("database");

// Numbers and times

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function number(value) {
  if (value === null) return "–";
  return value > 0 && value < 10 && !Number.isInteger(value) ? tenths.format(value) : whole.format(value);
}

function seconds(value) {
  if (value === null) return "–";
  if (value === 0) return "0 ms";
  if (value < 0.00995) return `${tenths.format(value * 1000)} ms`;
  if (value < 0.9995) return `${whole.format(value * 1000)} ms`;
  return value < 100 ? `${tenths.format(value)} s` : `${whole.format(value)} s`;
}

function clock(at) {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}

function plural(count, one, many) {
  return `${whole.format(count)} ${count === 1 ? one : many}`;
}

// Changing the page: only where something changed, so that a selection stays

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

function children(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
  return [...parent.children];
}

function make(tag, className, ...inside) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...inside);
  return node;
}

function row(labels, parts) {
  const line = make("tr");
  line.setAttribute("role", "row");
  labels.forEach((label, index) => {
    const cell = make(index ? "td" : "th", parts[index].className, ...parts[index].inside());
    cell.setAttribute("role", index ? "cell" : "rowheader");
    if (!index) cell.scope = "row";
    cell.dataset.label = label;
    line.append(cell);
  });
  return line;
}

// A line of the last two minutes

function spark(svg, values, words) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 0) || 1;
  const offset = KEPT - values.length;
  let line = "";
  let area = "";
  let begin = null;
  values.forEach((value, index) => {
    const x = offset + index;
    if (value === null) {
      begin = null;
      return;
    }
    const y = (29 - (value / top) * 27).toFixed(1);
    line += `${begin === null ? "M" : "L"}${x} ${y}`;
    if (begin === null) area += `M${x} 30`;
    area += `L${x} ${y}`;
    begin = begin ?? x;
    if (index + 1 === values.length || values[index + 1] === null) area += `L${x} 30Z`;
  });
  if (!svg.firstChild) {
    for (const name of ["area", "trace"]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
  }
  svg.firstChild.setAttribute("d", area);
  svg.lastChild.setAttribute("d", line);
  const highest = known.length ? Math.max(...known) : null;
  svg.setAttribute("aria-label", `The last two minutes; highest ${words(highest)}`);
}

// One database

const NUMBER = { className: "number", inside: () => [] };
const KINDS = {
  held: "held the ticket",
  taken: "lost the ticket, only read",
  conflict: "conflict",
  timeout: "gave up waiting",
  full: "refused, line full",
};

class Database {
  constructor() {
    this.section = template.content.firstElementChild.cloneNode(true);
    this.parts = new Map();
    for (const node of this.section.querySelectorAll("[data-id]")) this.parts.set(node.dataset.id, node);
    this.history = { commits: [], waiting: [], wait: [], syncs: [], connections: [] };
    this.part("stack-box").addEventListener("toggle", () => this.settle(true));
    const title = this.part("name");
    title.id = `database-${main.children.length}`;
    this.section.setAttribute("aria-labelledby", title.id);
  }

  part(id) {
    return this.parts.get(id);
  }

  put(id, text) {
    put(this.part(id), text);
  }

  remember(name, value) {
    const values = this.history[name];
    values.push(value);
    if (values.length > KEPT) values.shift();
  }

  gap() {
    for (const name of Object.keys(this.history)) this.remember(name, null);
  }

  update(told, all) {
    show(this.part("failed"), "failed" in told);
    show(this.part("shown"), !("failed" in told));
    if ("failed" in told) {
      if (!this.part("name").textContent) this.put("name", "Database");
      this.put("failed", `It cannot be looked at. ${told.failed}`);
      this.gap();
      return;
    }
    const isFile = told.kind === "sqlite";
    this.put("name", told.name || "a database in memory");
    this.put("place", told.place === told.name ? "" : told.place);
    this.tiles(told, isFile);
    show(this.part("queue"), isFile);
    show(this.part("processes-card"), isFile);
    if (isFile) {
      this.holder(told.holders[0]);
      this.line(told);
      this.processes(told.processes);
    }
    this.slow(told.slow, all, isFile);
    this.totals(told, isFile);
    this.settle();
  }

  // A card that has grown keeps its height, so that the page does not jump with each look.
  settle(anew = false) {
    const cards = [...this.section.querySelectorAll(".card")];
    if (anew) cards.forEach((card) => (card.style.minHeight = ""));
    for (const card of cards) {
      const height = card.offsetHeight;
      if (height > parseFloat(card.style.minHeight || "0")) card.style.minHeight = `${height}px`;
    }
  }

  tiles(told, isFile) {
    const { waits, connections, totals } = told;
    const per = told.syncs_per_second ? told.commits_per_second / told.syncs_per_second : 0;
    const oldest = told.line.length ? told.line[0].waited : 0;
    this.put("waiting-title", isFile ? "Waiting to write" : "Waiting for a connection");
    this.put("wait-title", waits.seconds === null ? "Wait, p99" : `Wait, p99 of ${whole.format(waits.seconds)} s`);
    this.tile("commits", told.commits_per_second, number, `${whole.format(totals.commits)} in all`);
    this.tile("waiting", told.waiting, number, oldest ? `the longest ${seconds(oldest)}` : "");
    const within = `p50 ${seconds(waits.p50)} · p95 ${seconds(waits.p95)}`;
    const quiet = waits.seconds === null ? "nobody has waited yet" : "nobody came";
    this.tile("wait", waits.count ? waits.p99 : null, seconds, waits.count ? within : quiet);
    show(this.part("syncs-tile"), isFile);
    this.tile("syncs", told.syncs_per_second, number, per >= 1 ? `${number(per)} commits each` : "");
    this.tile("connections", connections.in_use, number, `${plural(connections.open, "is", "are")} open`);
  }

  tile(name, value, words, sub) {
    this.remember(name, value);
    this.put(name, words(value));
    this.put(`${name}-sub`, sub);
    spark(this.part(`${name}-spark`), this.history[name], words);
  }

  holder(held) {
    show(this.part("free"), !held);
    show(this.part("holder"), Boolean(held));
    if (!held) return;
    const did = held.wrote ? "it has written, so all others wait" : "it has not written yet, so it can lose its turn";
    const waits = { process: "it waits for another process", lock: "it waits for SQLite's lock" }[held.waits_for];
    this.put("held", seconds(held.held));
    this.put("did", `– ${waits ?? did}`);
    this.put("statement", held.statement || "no statement yet");
    this.put("where", held.where);
    this.put("task", held.task);
    this.put("holder-process", String(held.pid));
    show(this.part("stack-box"), held.stack.length > 1);
    const calls = children(this.part("stack"), held.stack.length, () => make("li"));
    calls.forEach((node, index) => put(node, held.stack[index]));
  }

  line(told) {
    show(this.part("no-line"), !told.waiting);
    const listed = Math.min(told.line.length, WAITERS);
    const items = children(this.part("line"), listed, () =>
      make("li", "", make("span", "for"), make("span", "sql"), make("span", "by")));
    items.forEach((node, index) => {
      const { waited, statement, task, pid } = told.line[index];
      [seconds(waited), statement, `${task}, process ${pid}`].forEach((text, at) => put(node.children[at], text));
    });
    const more = told.waiting - listed;
    show(this.part("more-line"), more > 0);
    this.put("more-line", listed ? `and ${whole.format(more)} more` : plural(more, "waits", "wait"));
  }

  processes(list) {
    show(this.part("no-processes"), !list.length);
    show(this.part("processes-table"), Boolean(list.length));
    const foreign = list.filter((each) => each.foreign);
    show(this.part("foreign"), Boolean(foreign.length));
    const names = foreign.map((each) => `${each.program || "a program"} (process ${each.pid})`).join(", ");
    this.put("foreign", `A program without qsession holds SQLite's write lock: ${names}. All writers wait for it.`);
    const labels = ["Process", "Waiting", "Commits/s", "Wait p99", "Does"];
    const does = { className: "does", inside: () => [] };
    const who = { className: "who", inside: () => [make("span", "pid"), " ", make("span", "code"), make("span", "here")] };
    const parts = [who, NUMBER, NUMBER, NUMBER, does];
    children(this.part("processes"), list.length, () => row(labels, parts)).forEach((node, index) => {
      const each = list[index];
      const [who, waiting, commits, p99, does] = node.children;
      [String(each.pid), each.program, each.here ? "answers here" : ""].forEach((text, at) => put(who.children[at], text));
      put(waiting, each.foreign ? "" : number(each.waiting));
      put(commits, each.foreign ? "" : number(each.commits_per_second));
      put(p99, each.foreign ? "" : seconds(each.p99));
      put(does, each.foreign ? "holds SQLite's write lock" : each.does.join("\n"));
    });
  }

  slow(list, all, isFile) {
    const what = isFile ? "Transactions that held the ticket for long, lost it, or failed" : "Transactions that failed";
    this.put("slow-note", `${what}, in process ${all.pid}, since ${clock(all.since)}. Noted only while somebody looks.`);
    this.put("no-slow", "None so far.");
    show(this.part("no-slow"), !list.length);
    show(this.part("slow-table"), Boolean(list.length));
    const labels = ["", "What happened", "Times", "Longest", "In all", "Last"];
    const place = { className: "spot", inside: () => [make("span", "code"), make("span", "sql")] };
    const kind = { className: "", inside: () => [make("span", "kind")] };
    const parts = [place, kind, NUMBER, NUMBER, NUMBER, NUMBER];
    children(this.part("slow"), list.length, () => row(labels, parts)).forEach((node, index) => {
      const each = list[index];
      const [place, kind, times, longest, total, last] = node.children;
      put(place.firstElementChild, each.where);
      put(place.lastElementChild, each.statement);
      put(kind.firstElementChild, KINDS[each.kind] ?? each.kind);
      kind.firstElementChild.dataset.kind = each.kind;
      put(times, whole.format(each.times));
      put(longest, each.longest ? seconds(each.longest) : "–");
      put(total, each.total ? seconds(each.total) : "–");
      put(last, clock(each.last));
    });
  }

  totals({ totals, waits }, isFile) {
    const named = [["Conflicts", totals.conflicts], ["Gave up waiting", totals.timeouts]];
    if (isFile) named.push(["Tickets taken away", totals.taken_away], ["Read again before writing", totals.validations]);
    const texts = named.map(([name, value]) => [name, whole.format(value)]);
    texts.push(["Longest wait", seconds(waits.longest)]);
    const nodes = children(this.part("totals"), texts.length, () => make("div", "", make("dt"), make("dd")));
    nodes.forEach((node, index) => {
      texts[index].forEach((text, at) => put(node.children[at], text));
    });
  }
}

// The stream

const databases = [];
let stream = null;
let paused = false;
let complaint = 0;
let again = 0;

function say(name, text) {
  state.dataset.state = name;
  put(state, text);
}

function update(all) {
  while (databases.length < all.databases.length) {
    const database = new Database();
    databases.push(database);
    main.append(database.section);
  }
  all.databases.forEach((told, index) => databases[index].update(told, all));
  const waiting = all.databases.reduce((sum, told) => sum + (told.waiting ?? 0), 0);
  const title = waiting ? `${whole.format(waiting)} waiting – qsession` : "qsession";
  if (document.title !== title) document.title = title;
}

function open() {
  if (stream || paused || document.hidden) return;
  clearTimeout(again);
  stream = new EventSource("stream");
  stream.onmessage = (message) => {
    clearTimeout(complaint);
    complaint = 0;
    say("live", "Live");
    update(JSON.parse(message.data));
  };
  stream.onerror = () => {
    complain();
    if (stream && stream.readyState === EventSource.CLOSED) {
      stream = null;
      again = setTimeout(open, AGAIN);
    }
  };
}

function complain() {
  if (!complaint) complaint = setTimeout(() => say("lost", "Not connected, trying again…"), PATIENCE);
}

function close() {
  clearTimeout(again);
  clearTimeout(complaint);
  complaint = 0;
  if (!stream) return;
  stream.close();
  stream = null;
  databases.forEach((each) => each.gap());
}

function toggle() {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  put(document.getElementById("pause-label"), paused ? "Resume" : "Pause");
  if (paused) {
    close();
    say("paused", `Paused at ${clock(Date.now() / 1000)}`);
  } else {
    say("connecting", "Connecting…");
    open();
  }
}

pause.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => {
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat;
  if (plain && event.key.toLowerCase() === "p") toggle();
});
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
window.addEventListener("resize", () => databases.forEach((each) => each.settle(true)));
window.addEventListener("pagehide", close);
window.addEventListener("pageshow", open);
open();
