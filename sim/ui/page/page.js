(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const body = document.body;
  const token = body.dataset.token;
  const SAVED = "loraplan-ui";
  const MOST_TEXT = 1e6;
  const MOST_PINS = 3;
  const QUIET_MS = 1200; // a screen reader announces an answer when nothing has moved for so long

  // What this tab shows. It survives a reload; other tabs have their own.
  let state = { name: body.dataset.name, text: null, values: {}, moved: null, pins: [] };

  function keep() {
    try {
      sessionStorage.setItem(SAVED, JSON.stringify(state));
    } catch {
      // a browser without storage: a reload starts again
    }
  }

  function kept() {
    try {
      return JSON.parse(sessionStorage.getItem(SAVED));
    } catch {
      return null;
    }
  }

  // Talking to the server. Every answer is a stream of events; leaving it cancels what is computed for it.

  // Problems of a scenario come as JSON; any other refusal is text, and an error here.
  async function post(path, signal, asked = state) {
    const headers = { "Content-Type": "application/json", "X-Loraplan-Token": token };
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(asked), signal, cache: "no-store" });
    if (!response.ok && response.headers.get("Content-Type") !== "application/json") throw new Error(await response.text());
    return response;
  }

  function reason(error) {
    const gone = error instanceof TypeError; // what fetch throws when the server is gone
    return gone ? "loraplan ui has stopped. Start it again and open its new address." : error.message;
  }

  async function listen(path, signal, onEvent) {
    const response = await post(path, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      rest += value ?? "\n";
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.trim()) onEvent(JSON.parse(line));
      if (done) return;
    }
  }

  let following = new AbortController();
  let early = false; // the first event of the present answer has not come yet
  let again = false; // something moved since it was asked for

  // Moves that come faster than estimates are taken together: the last one counts.
  function changed() {
    keep();
    body.classList.add("stale");
    body.classList.remove("settled");
    body.dataset.stage = "asked";
    body.dataset.curve = "part";
    if (early) again = true;
    else follow();
  }

  async function follow() {
    following.abort();
    const mine = (following = new AbortController());
    early = true;
    again = false;
    const next = () => {
      if (mine !== following || !early) return false;
      early = false;
      return again;
    };
    try {
      await listen("/api/follow", mine.signal, (event) => {
        if (mine !== following) return;
        const more = next();
        apply(event);
        if (more) follow();
      });
    } catch (error) {
      if (mine === following && error.name !== "AbortError") lost(error);
    }
    if (next()) follow();
  }

  function lost(error) {
    at("status").textContent = reason(error);
    at("progress").hidden = true;
    body.dataset.stage = "lost";
  }

  // Showing what came.

  function put(id, html) {
    const place = at(id);
    const open = [...place.querySelectorAll("details")].map((each) => each.open);
    const focus = place.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
    place.innerHTML = html;
    place.querySelectorAll("details").forEach((each, i) => (each.open = open[i] ?? false));
    place.querySelectorAll("pre.command").forEach(offerCopy);
    for (const [name, value] of Object.entries(focus ?? {})) place.querySelector(`[data-${name}="${value}"]`)?.focus();
  }

  function apply(event) {
    body.dataset.stage = event.stage;
    if (event.stage !== "curve" && event.stage !== "compared") showProblems(event.problems ?? []);
    for (const [id, html] of Object.entries(event.parts ?? {})) put(id, html);
    if (event.parts && "pins" in event.parts) at("pins-box").hidden = !event.parts.pins.trim();
    if ("status" in event) at("status").textContent = event.status;
    if (["short", "tighter", "final"].includes(event.stage)) body.classList.remove("stale");
    if (event.stage === "refused") at("status").textContent = "Not simulated.";
    body.classList.toggle("settled", event.stage === "final" || (body.classList.contains("settled") && !event.stage.match(/estimate|refused/)));
    if (!["curve", "compared"].includes(event.stage)) {
      at("progress").hidden = !event.of;
      if (event.of) [at("progress").max, at("progress").value] = [event.of, event.done];
    } else {
      body.dataset.stage = body.classList.contains("settled") ? "final" : event.stage;
    }
    if (event.whole) body.dataset.curve = "whole";
    if (event.said) announce(event.said);
  }

  let announcing = 0;
  function announce(text, wait = QUIET_MS) {
    clearTimeout(announcing);
    announcing = setTimeout(() => {
      if (at("said").textContent !== text) at("said").textContent = text;
    }, wait);
  }

  function showProblems(problems) {
    for (const shown of document.querySelectorAll(".control .problem")) shown.textContent = "";
    for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
    at("problems").replaceChildren();
    for (const { control, text } of problems) {
      const place = control && at(`${control}-problem`);
      if (place) {
        place.textContent = [place.textContent, text].filter(Boolean).join(" ");
        for (const input of [at(control), at(`${control}-slider`)]) input?.setAttribute("aria-invalid", "true");
        announce(text, 600);
      } else {
        const line = document.createElement("li");
        line.textContent = text;
        at("problems").append(line);
      }
    }
  }

  function offerCopy(block) {
    const box = document.createElement("div");
    box.className = "copied";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${block.getAttribute("aria-label")}`);
    block.replaceWith(box);
    box.append(button, block);
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(block.textContent.trim());
      } catch {
        getSelection().selectAllChildren(block);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Selected";
      announce(done ? "Copied." : "Selected: copy it with the keyboard.", 0);
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }

  // Controls.

  const stopsOf = (control) => control.dataset.stops?.split(" ") ?? null;

  function nearest(stops, value) {
    if (value === "") return 0;
    const gaps = stops.map((stop) => (stop === "" ? Infinity : Math.abs(Math.log((Number(stop) || 1e-9) / (Number(value) || 1e-9)))));
    return gaps.indexOf(Math.min(...gaps));
  }

  // data-stops begins with a space where a key may be unset, so its first stop is empty.
  function show(control, value, from = null) {
    const [select, number, slider] = ["select", "input[type=number]", "input[type=range]"].map((what) => control.querySelector(what));
    if (select) select.value = value;
    if (number && number !== from) number.value = value;
    if (slider) {
      if (slider !== from) slider.value = nearest(stopsOf(control), value);
      slider.setAttribute("aria-valuetext", value === "" ? "none" : `${value}${slider.dataset.unit}`);
    }
    control.classList.toggle("moved", value !== control.dataset.own);
  }

  function showAll() {
    for (const control of document.querySelectorAll(".control")) show(control, state.values[control.dataset.key] ?? control.dataset.own);
  }

  function moved(event) {
    const control = event.target.closest(".control");
    if (!control) return;
    const value = event.target.type === "range" ? stopsOf(control)[event.target.value] : event.target.value.trim();
    if (event.target.type === "number" && !event.target.validity.valid) return;
    const { key, own } = control.dataset;
    if ((state.values[key] ?? own) === value) return;
    if (value === own) delete state.values[key];
    else state.values[key] = value;
    state.moved = key;
    show(control, value, event.target);
    changed();
  }

  async function openScenario(name, text, values = {}, rest = {}) {
    following.abort();
    early = again = false;
    let event;
    try {
      event = await (await post("/api/open", null, { name, text })).json();
    } catch (error) {
      choose(state.name);
      return lost(error);
    }
    if (event.stage === "refused") {
      keep();
      body.dataset.stage = "refused";
      showProblems(event.problems);
      at("status").textContent = `${name} was not opened. The page still shows ${state.name}.`;
      choose(state.name);
      return false;
    }
    state = { name: text === null ? name : event.name, text, values, moved: null, pins: [], ...rest };
    for (const [id, html] of Object.entries(event.parts)) put(id, html);
    document.title = `${at("heading").querySelector("h1").textContent} · loraplan`;
    choose(state.name);
    put("pins", "");
    at("pins-box").hidden = true;
    put("made", "");
    showAll();
    changed();
    return true;
  }

  // Shows a name in the list of scenarios; that of a chosen file is added to it.
  function choose(name) {
    const list = at("scenario");
    list.querySelector("option[data-file]")?.remove();
    if (state.text !== null && name === state.name) {
      const option = new Option(`${name} (your file)`, "", true, true);
      option.dataset.file = "";
      list.prepend(option);
    } else {
      list.value = name;
    }
  }

  async function take(file) {
    if (!file) return;
    if (file.size > MOST_TEXT) return showProblems([{ control: "", text: `${file.name}: too large for a scenario (at most 1 MB)` }]);
    await openScenario(file.name, await file.text());
  }

  // Pins, and what leaves the page.

  function pin() {
    if (state.pins.length === MOST_PINS) state.pins.shift();
    state.pins.push({ ...state.values });
    announce("Pinned.", 0);
    changed();
  }

  function pinned(event) {
    const { use, remove } = event.target.closest("button")?.dataset ?? {};
    if (use !== undefined) state.values = { ...state.pins[use] };
    else if (remove !== undefined) state.pins.splice(Number(remove), 1);
    else return;
    if (remove !== undefined) at("pin").focus();
    showAll();
    changed();
  }

  function notMade(error) {
    at("making").textContent = reason(error);
    announce(reason(error), 0);
  }

  async function save() {
    let content;
    try {
      const response = await post("/api/scenario");
      if (!response.ok) return showProblems((await response.json()).problems);
      content = await response.blob();
    } catch (error) {
      return notMade(error);
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = "scenario.yaml";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    at("making").textContent = "scenario.yaml is saved. loraplan run scenario.yaml gives the numbers of this page.";
  }

  async function make(path, button) {
    const buttons = [at("report"), at("plan")];
    buttons.forEach((each) => (each.disabled = true));
    put("made", "");
    try {
      await listen(path, null, (event) => {
        if (event.status) at("making").textContent = event.status;
        for (const [id, html] of Object.entries(event.parts ?? {})) put(id, html);
        for (const { text } of event.problems ?? []) at("making").textContent = text;
        if (event.stage === "made") announce("The report is written.", 0);
      });
    } catch (error) {
      notMade(error);
    }
    buttons.forEach((each) => (each.disabled = false));
    button.focus();
  }

  at("form").addEventListener("input", moved);
  at("form").addEventListener("submit", (event) => event.preventDefault());
  at("form").addEventListener("reset", (event) => {
    event.preventDefault();
    state.values = {};
    showAll();
    changed();
  });
  at("scenario").addEventListener("change", (event) => event.target.value && openScenario(event.target.value, null));
  at("file").addEventListener("change", async (event) => {
    await take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  addEventListener("dragleave", () => at("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  at("pin").addEventListener("click", pin);
  at("pins").addEventListener("click", pinned);
  at("save").addEventListener("click", save);
  at("report").addEventListener("click", () => make("/api/report", at("report")));
  at("plan").addEventListener("click", () => make("/api/plan", at("plan")));

  // Opened again rather than shown as it was: the file may have changed since.
  (async () => {
    const before = kept();
    if (before?.name && (await openScenario(before.name, before.text, before.values, { moved: before.moved, pins: before.pins }))) return;
    if (before?.name && (before.text !== null || before.name !== state.name)) await openScenario(state.name, null);
    else if (!before?.name) await openScenario(state.name, null);
  })();
})();
