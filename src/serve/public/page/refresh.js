(() => {
  "use strict";
  const main = document.querySelector("main");
  const silent = document.getElementById("silent");
  // every text in it is escaped, so the first end tag is the end
  const part = (page, tag) => {
    const from = page.indexOf(`<${tag}>`);
    const to = page.indexOf(`</${tag}>`);
    if (from < 0 || to < from) throw new Error("no page");
    return page.slice(from + tag.length + 2, to);
  };
  let shown = "";
  async function look() {
    // what somebody is copying stays
    if (!document.hidden && getSelection().isCollapsed) {
      const end = new AbortController();
      const timer = setTimeout(() => end.abort(), 5000);
      try {
        const answer = await fetch("/", { cache: "no-store", signal: end.signal });
        if (!answer.ok) throw new Error("no answer");
        const page = await answer.text();
        const next = part(page, "main");
        if (next !== shown) {
          const open = [...main.querySelectorAll("details[open]")].map((d) => d.id);
          const focused = document.activeElement?.closest("details[id]")?.id;
          main.innerHTML = shown = next;
          for (const id of open) document.getElementById(id)?.setAttribute("open", "");
          if (focused) document.getElementById(focused)?.querySelector("summary").focus({ preventScroll: true });
          document.title = part(page, "title");
        }
        silent.hidden = true;
      } catch {
        silent.hidden = false;
      } finally {
        clearTimeout(timer);
      }
    }
    setTimeout(look, 2000);
  }
  setTimeout(look, 2000);
})();
