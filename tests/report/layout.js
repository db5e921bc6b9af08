// What a page's layout says of itself: text that overlaps within a figure, figures without their words, what is too wide.
() => {
  const shown = (element) => element.checkVisibility({ visibilityProperty: true });
  const lines = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return [...range.getClientRects()].filter((box) => box.width > 1 && box.height > 1);
  };
  const boxes = (figure) => {
    const found = [], walk = document.createTreeWalker(figure, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode());) {
      if (node.data.trim() && shown(node.parentElement)) for (const box of lines(node)) found.push([node.data.trim().slice(0, 40), box, node]);
    }
    for (const image of figure.querySelectorAll("img, svg, input")) {
      if (shown(image)) found.push([image.tagName, image.getBoundingClientRect(), image]);
    }
    return found;
  };
  const across = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  const overlapping = (figure) => boxes(figure).flatMap(([what, box, node], i, all) =>
    all.slice(0, i).filter(([, other, its]) => its !== node && across(box, other) > 2 && down(box, other) > 4).map(([other]) => [what, other]));
  // Words of tables' cells that go on in the next line, but for names of code and beside a hyphen.
  const broken = (cell) => {
    const found = [], walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode());) {
      if (node.parentElement.closest("code, pre, math") || !shown(node.parentElement)) continue;
      for (const word of node.data.matchAll(/[\p{L}\p{N}.]+/gu)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        if (range.getClientRects().length > 1) found.push(word[0]);
      }
    }
    return found;
  };
  const figures = [...document.querySelectorAll("figure")];
  const told = (figure) => figure.querySelector("figcaption")?.innerText.trim()
    && [...figure.querySelectorAll("img, svg")].every((image) => image.alt || image.getAttribute("aria-label"))
    && figure.querySelector("img, svg") && figure.querySelector('figcaption a[href*="runs.html#run-"], figcaption a[href$="#own-run"]');
  const rows = (caption) => {
    const details = caption.querySelector("details");
    const height = caption.offsetHeight - (details && shown(details) ? details.offsetHeight : 0);
    return Math.round(height / parseFloat(getComputedStyle(caption).lineHeight));
  };
  return {
    width: document.documentElement.scrollWidth,
    overlapping: [...figures, ...document.querySelectorAll(".explorer")].flatMap(overlapping),
    untold: figures.filter((figure) => !told(figure)).map((figure) => figure.innerText.slice(0, 80)),
    scrolling: [...document.querySelectorAll(".scroll")].filter((t) => t.scrollWidth > t.clientWidth + 1).map((t) => t.innerText.slice(0, 80)),
    broken: [...document.querySelectorAll("td, th")].flatMap(broken),
    outside: figures.filter((figure) => figure.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length,
    lines: Math.max(0, ...figures.map((figure) => rows(figure.querySelector("figcaption")))),
    turned: [...document.querySelectorAll("figure.plot img")].map((image) => getComputedStyle(image).filter !== "none"),
    header: shown(document.querySelector("header.top")),
  };
}
