// What is wider than the page can be scrolled with the keyboard, in every browser.
(() => {
  "use strict";
  const mark = (place) => {
    if (place.id || place.scrollWidth <= place.clientWidth) return;
    place.tabIndex = 0;
    const caption = place.querySelector("table")?.getAttribute("aria-labelledby");
    if (!caption) return;
    place.setAttribute("role", "region");
    place.setAttribute("aria-labelledby", caption);
  };
  const watch = new ResizeObserver((seen) => seen.forEach((entry) => mark(entry.target)));
  document.querySelectorAll(".scroll").forEach((place) => watch.observe(place));
})();
// The slices of a volume: a slider, arrow keys, the wheel. Without it the first slice stands there as a picture.
(() => {
  "use strict";
  for (const stack of document.querySelectorAll(".slices")) {
    const labels = JSON.parse(stack.dataset.labels);
    const frame = stack.querySelector(".frame");
    const slider = stack.querySelector('input[type="range"]');
    const contours = stack.querySelector('input[type="checkbox"]');
    const whose = frame.getAttribute("aria-label").slice(labels[slider.value].length);

    const show = () => {
      const label = labels[slider.value];
      stack.style.setProperty("--i", slider.value);
      stack.querySelector(".position").textContent = label;
      slider.setAttribute("aria-valuetext", label);
      frame.setAttribute("aria-label", label + whose);
    };
    slider.addEventListener("input", show);
    contours.addEventListener("change", () => stack.classList.toggle("plain", !contours.checked));
    frame.addEventListener("click", () => slider.focus({ preventScroll: true }));
    // The wheel turns the page until the picture is chosen, and again past the last slice.
    let turned = 0;
    frame.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement !== slider) return;
        turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
        const steps = Math.trunc(turned / 40);
        const next = Math.min(labels.length - 1, Math.max(0, Number(slider.value) + steps));
        if (steps && next === Number(slider.value)) {
          turned = 0;
          return;
        }
        event.preventDefault();
        turned -= steps * 40;
        if (!steps) return;
        slider.value = next;
        show();
      },
      { passive: false },
    );
    stack.querySelector(".controls").hidden = false;
    show();
  }
})();
