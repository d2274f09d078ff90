// Sends a chosen file to the page as a data address. The server decodes it and writes no file.
const file = element.querySelector("[type=file]");
file.addEventListener("change", () => {
  const chosen = file.files[0];
  if (!chosen) return;
  const send = (data) => trigger("upload", { data, size: chosen.size });
  if (chosen.size > props.limit) {
    send("");
  } else {
    const reader = new FileReader();
    reader.onload = () => send(reader.result);
    reader.readAsDataURL(chosen);
  }
  file.value = "";
});
