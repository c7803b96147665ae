// What a test asks of a page: texts and fields that are hard to see, where the Tab key stops, what is odd about the place it stands at.
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

  function rgba(color) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }

  function over(front, back, share = front[3]) {
    return [0, 1, 2].map((part) => front[part] * share + back[part] * (1 - share)).concat(1);
  }

  function behind(element) {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255, 1]);
  }

  function light([r, g, b]) {
    const parts = [r, g, b].map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  }

  function contrast(one, two) {
    const [less, more] = [light(one), light(two)].sort((a, b) => a - b);
    return (more + 0.05) / (less + 0.05);
  }

  function opacity(element) {
    let share = 1;
    for (let at = element; at; at = at.parentElement) share *= Number(getComputedStyle(at).opacity);
    return share;
  }

  function seen(element, color, share = 1) {
    const back = behind(element);
    const front = rgba(color);
    return contrast(over(front, back, front[3] * share), back);
  }

  const shown = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });

  // WCAG 1.4.3 for text (4.5, also where it is large), 1.4.11 for the edges of fields (3).
  function faint() {
    for (const each of document.querySelectorAll("details")) each.open = true;
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let count = 0;
    while (texts.nextNode()) {
      const holder = texts.currentNode.parentElement;
      const words = texts.currentNode.textContent.trim();
      if (!words || !shown(holder) || ["TITLE", "DESC", "OPTION", "SCRIPT"].includes(holder.tagName.toUpperCase())) continue;
      const style = getComputedStyle(holder);
      const value = seen(holder, holder instanceof SVGElement ? style.fill : style.color, opacity(holder));
      count += 1;
      if (value < 4.5) found.push(`${value.toFixed(2)} ${words.slice(0, 40)}`);
    }
    for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
      const [style, hint] = [getComputedStyle(field), getComputedStyle(field, "::placeholder")];
      const value = Math.min(seen(field, style.color), field.placeholder ? seen(field, hint.color, Number(hint.opacity)) : Infinity);
      const edge = contrast(rgba(style.borderTopColor), behind(field.parentElement));
      if (value < 4.5) found.push(`${value.toFixed(2)} field ${field.name}`);
      if (edge < 3) found.push(`${edge.toFixed(2)} edge of field ${field.name}`);
    }
    return { count, found };
  }

  const stops = () =>
    [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']")].filter(shown);

  const name = (element) => `${element.tagName} ${(element.textContent || element.name || "").trim().slice(0, 30)}`;

  // Where the keyboard is now: its number among the stops, or what it is where it should not be; null outside the page.
  function here() {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const place = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    const inside = place.bottom > 0 && place.top < innerHeight && place.right > 0 && place.left < innerWidth;
    if (!inside) return `${name(element)} is outside the window`;
    if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) return `${name(element)} does not show the focus`;
    const at = stops().indexOf(element);
    return at < 0 ? `${name(element)} is no stop` : at;
  }

  window.looking = { faint, here, stops: () => stops().map(name) };
})();
