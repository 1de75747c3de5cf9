function make(tag, text, attributes = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) { if (name === "mark") made.style.setProperty("--mark", color(value)); else if (name.startsWith("on")) made.addEventListener(name.slice(2), value); else made.setAttribute(name, value); }
  made.append(...children);
  return made;
}
function draw(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
