// What happens on the page without the server: the slider over a path, copying, painting a mask.
(() => {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const inside = (event, selector) => event.target instanceof Element && event.target.closest(selector);

  function show(path, step) {
    const frames = (path.frames ??= JSON.parse(path.dataset.frames));
    const words = (path.words ??= JSON.parse(path.dataset.words));
    path.querySelectorAll(".halves img").forEach((half, i) => (half.src = frames[step][i]));
    path.querySelector("input").value = step;
    path.querySelector("output").textContent = words[step];
    path.querySelectorAll(".ticks i").forEach((tick, i) => tick.classList.toggle("now", i === step));
    return frames.length;
  }

  async function play(path) {
    const count = show(path, 0);
    for (let step = 0; step < count && path.isConnected; step++) {
      show(path, step);
      await new Promise((done) => setTimeout(done, still ? 0 : Math.max(70, 1600 / count)));
    }
  }

  async function copy(button) {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("code"));
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1200);
  }

  /** The marks on a canvas, row by row, into the field that the server reads. */
  function send(canvas) {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let marks = "";
    for (let i = 3; i < data.length; i += 4) marks += data[i] > 0 ? "1" : "0";
    const field = document.querySelector("#mask textarea, #mask input");
    field.value = marks;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  let painting = null, last = null;
  function mark(x, y) {
    const context = painting.getContext("2d");
    const brush = Number(painting.closest(".painter").parentElement.querySelector(".brush").value);
    context.fillStyle = getComputedStyle(painting).color;
    context.fillRect(Math.floor(x - (brush - 1) / 2), Math.floor(y - (brush - 1) / 2), brush, brush);
  }

  /** Marks from the last place of the pointer to this one. */
  function paint(event) {
    const box = painting.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * painting.width;
    const y = ((event.clientY - box.top) / box.height) * painting.height;
    const [from_x, from_y] = last ?? [x, y];
    const steps = Math.ceil(2 * Math.hypot(x - from_x, y - from_y)) || 1;
    for (let i = 1; i <= steps; i++) mark(from_x + ((x - from_x) * i) / steps, from_y + ((y - from_y) * i) / steps);
    last = [x, y];
  }

  document.addEventListener("input", (event) => {
    const path = inside(event, ".path");
    if (path) show(path, Number(event.target.value));
  });
  document.addEventListener("click", (event) => {
    const button = inside(event, "button");
    if (!button) return;
    if (button.matches(".play")) play(button.closest(".path"));
    if (button.matches(".copy")) copy(button);
    if (button.matches(".clear")) {
      const canvas = button.closest(".tools").parentElement.querySelector("canvas");
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      send(canvas);
    }
  });
  document.addEventListener("pointerdown", (event) => {
    painting = inside(event, ".painter canvas") || null;
    last = null;
    if (!painting) return;
    event.preventDefault();
    paint(event);
  });
  document.addEventListener("pointermove", (event) => painting && paint(event));
  document.addEventListener("pointerup", () => {
    if (painting) send(painting);
    painting = null;
  });
})();
