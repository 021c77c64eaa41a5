// Renders what pymdownx.arithmatex marked as a formula: \(...\) in a span, \[...\] in a div.
for (const element of document.querySelectorAll(".arithmatex")) {
  const formula = element.textContent.trim().slice(2, -2);
  katex.render(formula, element, { displayMode: element.tagName === "DIV", throwOnError: false });
}
