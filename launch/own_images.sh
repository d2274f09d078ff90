#!/usr/bin/env bash
# Makes a generator of your own images: checks them, trains a tokenizer and a RAR, samples, scores, and writes a page.
#   launch/own_images.sh DIR [run folder]       DIR has a folder of images for each class, or is a folder of images
#   launch/own_images.sh glyphs [run folder]    the embedded glyphs, as a second quick start
# The same command resumes the work if it was stopped. Settings are environment variables:
#   IMAGE_SIZE=64      side in pixels of the squares that are cut from the images
#   HOURS=2            time for the training of the tokenizer and the RAR
#   TOKENIZER=FILE     weights of a tokenizer to fit to the images; by default one is trained from scratch
#   INCEPTION=FILE     weights of the FID Inception network, for a perceptual loss, rFID and FID
#   PLATFORM=cpu       cpu, cuda or tpu, for the installation if there is none yet
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ] || [[ ${2:-} =~ ^[A-Z_]+= ]]; then sed -n '2,11s/^# \?//p' "$0" >&2; exit 2; fi
fail() { echo "error: $1" >&2; exit 2; }
images=$1
if [ "$images" != glyphs ]; then
  images=$(realpath "$images")
  [[ ${HOURS:-2} =~ ^[0-9]*\.?[0-9]+$ && ${HOURS:-2} =~ [1-9] ]] || fail "HOURS=$HOURS must be a number above 0"
  for name in TOKENIZER INCEPTION; do
    [ -z "${!name:-}" ] || [ -e "${!name}" ] || fail "$name=${!name}: there is no such file"
    [ -z "${!name:-}" ] || declare "$name=$(realpath "${!name}")"
  done
fi
run=$(realpath -m "${2:-$(dirname "$0")/../runs/$(basename "$images")}")
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || launch/install.sh "${PLATFORM:-cpu}"

settings="images=$images"
[ "$images" = glyphs ] ||
  settings+=" IMAGE_SIZE=${IMAGE_SIZE:-64} HOURS=${HOURS:-2} TOKENIZER=${TOKENIZER:-} INCEPTION=${INCEPTION:-}"
earlier=$(cat "$run/stages/settings" 2>/dev/null || echo "$settings")
# Runs of the glyphs once stored settings that have no effect on them.
[[ "$earlier" != "images=glyphs "* ]] || earlier=images=glyphs
if [ "$earlier" != "$settings" ]; then
  # Completed stages are not repeated. Until the training is planned, only the images must stay.
  if [ -e "$run/stages/plan" ] || [ -e "$run/tokenizer" ] || [ "${earlier%% IMAGE_SIZE=*}" != "images=$images" ]; then
    fail "$run was started with $earlier, not $settings: use the same settings, or another run folder"
  fi
  # The check depends on the images, the size and the tokenizer.
  checked() { sed -E 's/ HOURS=[^ ]*//; s/ INCEPTION=.*//' <<<"$1"; }
  [ "$(checked "$earlier")" = "$(checked "$settings")" ] || rm -f "$run/stages/check"
fi

# stage NAME FLAGS: runs python -m rar_jax FLAGS, unless the stage was completed before.
stage() {
  local name=$1
  shift
  if [ -e "$run/stages/$name" ]; then return; fi
  printf '\n== %s ==\npython -m rar_jax' "$name"
  printf ' %q' "$@"
  printf '\n'
  .venv/bin/python -m rar_jax "$@"
  mkdir -p "$run/stages"
  echo "$settings" >"$run/stages/settings"
  touch "$run/stages/$name"
}

features=()
if [ "$images" = glyphs ]; then
  size=32
  features=(--features=glyphs)
  tokenizer=(--config=configs/tokenizers/glyph_digits.py)
  rar=(--config=configs/glyphs.py --config.data.name=records --config.data.tokenizer="$run/tokenizer"
    --config.data.path="$run/tokens/train" --config.data.eval_path="$run/tokens/heldout" --config.eval.report_samples=0)
  stage images write_glyphs --output="$run/images/train" --num=20000
  stage held_out_images write_glyphs --output="$run/images/heldout" --num=3600 --split=heldout
else
  size=${IMAGE_SIZE:-64}
  if [ -n "${INCEPTION:-}" ]; then features=(--inception="$INCEPTION"); fi
  tokenizer=(--config="$run/tokenizer.py")
  rar=(--config="$run/rar.py")
  stage check check_images --images="$images" --image_size="$size" --tokenizer="${TOKENIZER:-}"
  stage split split_images --images="$images" --output="$run/images"
  stage plan plan --images="$run/images" --image_size="$size" --hours="${HOURS:-2}" --tokenizer="${TOKENIZER:-}" \
    --inception="${INCEPTION:-}" --out="$run"
fi
stage tokenizer train_tokenizer "${tokenizer[@]}" --workdir="$run/tokenizer"
for part in train heldout; do
  stage "tokenize_$part" tokenize --images="$run/images/$part" --image_size="$size" --tokenizer="$run/tokenizer" \
    --output="$run/tokens/$part"
done
stage train train "${rar[@]}" --workdir="$run/rar"
classes=$(find "$run/images/train" -mindepth 1 -maxdepth 1 -type d | wc -l)
stage sample sample --checkpoint="$run/rar" --out="$run/samples" --num=$((classes > 125 ? 8 * classes : 1000)) --npz
if [ ${#features[@]} -gt 0 ]; then
  stage evaluate evaluate --samples="$run/samples" --reference="$run/images/heldout" --image_size="$size" \
    "${features[@]}" --out="$run/evaluation/samples"
fi
stage nearest nearest --samples="$run/samples" --training="$run/images/train" --heldout="$run/images/heldout" \
  --tokenizer="$run/tokenizer" --image_size="$size" --out="$run/evaluation/nearest"
stage page page --run="$run"
echo "Open $run/index.html"
