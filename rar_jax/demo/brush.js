// A canvas on which the user paints the tokens to fill. props.value is {image, grid, mask}: the address of the
// image, the side of the token grid, and a string with 0 or 1 for each token.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const size = element.querySelector("[name=size]");
const picture = new Image();
let mask = [];
let cursor = null;
let erasing = false;

const grid = () => props.value.grid;

function draw() {
  const cell = canvas.width / grid();
  context.fillStyle = "#f1f3f5";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  if (props.value.image && picture.complete && picture.naturalWidth) {
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
  mask.forEach((covered, i) => {
    if (!covered) return;
    context.fillStyle = "rgba(37, 99, 235, 0.62)";
    context.fillRect((i % grid()) * cell, Math.floor(i / grid()) * cell, cell, cell);
  });
  if (cursor && document.activeElement === canvas) {
    context.strokeStyle = "#b45309";
    context.lineWidth = 3;
    context.strokeRect(cursor[0] * cell + 1.5, cursor[1] * cell + 1.5, cell - 3, cell - 3);
  }
}

function load() {
  mask = [...props.value.mask].map((c) => c === "1");
  picture.onload = draw;
  picture.src = props.value.image || "";
  draw();
}

function save() {
  props.value = { ...props.value, mask: mask.map((covered) => (covered ? "1" : "0")).join("") };
  trigger("change");
}

function paint(x, y) {
  const radius = Number(size.value) / 2;
  for (let row = 0; row < grid(); row++) {
    for (let column = 0; column < grid(); column++) {
      if (Math.max(Math.abs(column + 0.5 - x), Math.abs(row + 0.5 - y)) < radius) {
        mask[row * grid() + column] = !erasing;
      }
    }
  }
  draw();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * grid(), ((event.clientY - box.top) / box.height) * grid()];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  paint(...place(event));
});
canvas.addEventListener("pointermove", (event) => {
  if (canvas.hasPointerCapture(event.pointerId)) paint(...place(event));
});
canvas.addEventListener("pointerup", save);
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  cursor = cursor || [0, 0];
  if (event.key in moves) {
    cursor = cursor.map((at, axis) => Math.min(grid() - 1, Math.max(0, at + moves[event.key][axis])));
    draw();
  } else if (event.key === " ") {
    const i = cursor[1] * grid() + cursor[0];
    mask[i] = !mask[i];
    draw();
    save();
  } else {
    return;
  }
  event.preventDefault();
});
canvas.addEventListener("blur", draw);
canvas.addEventListener("focus", draw);
element.querySelector("[name=erase]").addEventListener("change", (event) => {
  erasing = event.target.checked;
});
element.querySelector("[name=clear]").addEventListener("click", () => {
  mask.fill(false);
  draw();
  save();
});
watch("value", load);
load();
