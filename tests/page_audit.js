// What is wrong with the look of what is visible: text below 12 px or with too little contrast, text that is cut, a page
// that scrolls sideways, names in the drawing that lie on one another.
() => {
  const wrong = [];
  const numbers = (colour) => (colour.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const brightness = ([r, g, b]) =>
    [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const drawn = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const nodes = [...document.querySelectorAll("input[type=text]")];
  while (walker.nextNode()) if (walker.currentNode.data.trim()) nodes.push(walker.currentNode.parentElement);
  for (const node of nodes) {
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest("script, style, noscript")) continue;
    const style = getComputedStyle(node);
    const text = (node.matches("input") ? node.value : node.textContent).slice(0, 30);
    const { b, d } = node.closest("svg") ? node.getScreenCTM() : { b: 0, d: 1 };
    const scale = Math.hypot(b, d); // a drawing may be shrunk as a whole
    const size = scale * parseFloat(style.fontSize);
    if (size < 12) wrong.push(`${text}: ${size}px`);
    const both = [brightness(numbers(node.closest("svg") ? style.fill : style.color)), brightness(behind(node))];
    const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (contrast < 4.5) wrong.push(`${text}: contrast ${contrast.toFixed(2)}`);
    const box = node.getBoundingClientRect();
    if (!node.closest("pre") && (box.left < -0.5 || box.right > innerWidth + 0.5)) wrong.push(`${text}: cut at the side`);
    if (node.matches("input") && node.scrollWidth > node.clientWidth + 1) wrong.push(`${text}: cut in its field`);
    if (node.matches("svg text")) drawn.push([text, box]);
  }
  const [shrink, root] = [3, document.documentElement];
  drawn.forEach(([text, p], i) => drawn.slice(i + 1).forEach(([other, q]) => {
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (across > shrink && down > 2 * shrink) wrong.push(`${text} lies on ${other}`);
  }));
  if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
  return wrong;
}
