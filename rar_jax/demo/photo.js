// Shows the image that props.value.image is the address of.
const image = element.querySelector("img");
const show = () => {
  image.hidden = !props.value.image;
  if (props.value.image) image.src = props.value.image;
};
watch("value", show);
show();
