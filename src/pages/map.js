// The map of src/pages/map.py: pointer and arrow keys choose a point, which is shown and played.
"use strict";
const points = JSON.parse(document.getElementById("points").textContent);
const map = document.getElementById("map");
const svg = map.querySelector("svg");
const marks = [...svg.querySelectorAll("path")];
const places = marks.map(mark => mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number));
const audio = document.getElementById("audio");
const image = document.getElementById("mel");
const REACH = 25; // of the pointer, in units of the map
let chosen = -1;

function choose(number) {
  if (number === chosen) return;
  if (chosen >= 0) marks[chosen].classList.remove("on");
  chosen = number;
  const point = points[number];
  marks[number].classList.add("on");
  svg.append(marks[number]); // above the others
  document.getElementById("label").textContent = point.label;
  document.getElementById("name").textContent = point.problem ? `${point.name}: ${point.problem}` : point.name;
  document.getElementById("said").textContent = `${point.label} ${point.name} ${point.problem}`;
  image.hidden = !point.image;
  image.src = point.image;
  image.alt = point.image ? `log-mel of ${point.name}` : "";
  audio.src = point.audio;
}

function play() {
  if (chosen >= 0 && points[chosen].audio) audio.play().catch(() => {}); // browsers are silent before the first click
}

function shown(number) { return !marks[number].classList.contains("dim"); }

function nearest(x, y, reach, allowed) {
  let best = -1;
  places.forEach(([px, py], number) => {
    const distance = Math.hypot(px - x, py - y);
    if (distance < reach && shown(number) && allowed(px - x, py - y)) { reach = distance; best = number; }
  });
  return best;
}

function pointed(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const number = nearest(at.x, at.y, REACH, () => true);
  if (number >= 0 && (number !== chosen || event.type === "click")) { choose(number); play(); }
}
svg.addEventListener("pointermove", pointed);
svg.addEventListener("click", pointed);

const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
map.addEventListener("keydown", event => {
  const way = directions[event.key];
  if (way) {
    const [x, y] = chosen >= 0 ? places[chosen] : [500, 500];
    const ahead = (dx, dy) => dx * way[0] + dy * way[1] > Math.hypot(dx, dy) * 0.7;
    const number = nearest(x, y, Infinity, chosen >= 0 ? ahead : () => true);
    if (number >= 0) choose(number);
  } else if (event.key === "Enter" || event.key === " ") play();
  else if (event.key === "Escape") audio.pause();
  else return;
  event.preventDefault();
});

document.getElementById("find").addEventListener("input", event => {
  const text = event.target.value.toLowerCase();
  points.forEach((point, number) => {
    marks[number].classList.toggle("dim", !`${point.label} ${point.name}`.toLowerCase().includes(text));
  });
});
