// Returns what an answer must not have: tags and attributes beyond those of Markdown, and links to elsewhere than the web.
(answer) => {
  const tags = new Set(
    `a abbr b blockquote br button code dd del details div dl dt em footer h1 h2 h3 h4 h5 h6 header hr i input kbd li
     mark ol p pre q s samp small span strong sub summary sup table tbody td th thead tr u ul var`.split(/\s+/),
  );
  const names = new Set(
    `align aria-hidden aria-label checked class colspan dir disabled href lang open rel role rowspan start tabindex
     target title type`.split(/\s+/),
  );
  const found = [];
  // After calls of tools the page has its own form, for their results.
  const own = answer.querySelector(".call") === null ? "button" : "button, form.results";
  for (const element of answer.querySelectorAll("*")) {
    if (element.closest(own) !== null) continue;
    const tag = element.localName;
    if (!tags.has(tag)) found.push(`the tag ${tag}`);
    if (tag === "input" && !(element.type === "checkbox" && element.disabled)) found.push("a field");
    if (tag === "a" && element.hasAttribute("href")) {
      if (!/^(https?|mailto):/.test(element.href)) found.push(`a link to ${element.href}`);
      if (element.target !== "_blank" || !element.rel.includes("noopener")) found.push("a link that stays here");
    }
    for (const { name, value } of element.attributes) {
      if (!names.has(name)) found.push(`the attribute ${name}=${value}`);
      if (name === "class" && /dialog|modal|overlay/.test(value)) found.push(`the class ${value}`);
    }
    if (getComputedStyle(element).position === "fixed") found.push("a fixed element");
  }
  return found;
}
