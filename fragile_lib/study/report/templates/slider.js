// One frame at a time, chosen by a slider, which arrow keys move; without a script all frames stand below one another.
for (const figure of document.querySelectorAll(".dampings")) {
  const frames = [...figure.querySelectorAll(".frame")], [input, said] = [figure.querySelector("input"), figure.querySelector("output")];
  const choose = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(input.value); });
    said.textContent = frames[input.value].dataset.damping;
    input.setAttribute("aria-valuetext", said.textContent);
  };
  input.addEventListener("input", choose);
  figure.querySelector(".slider").hidden = false;
  figure.classList.add("live");
  choose();
}
