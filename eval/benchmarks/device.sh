#!/usr/bin/env bash
# Measures on an accelerator what docs/speed.md leaves blank, the most important first.
#
#   bash eval/benchmarks/device.sh                            runs every step that has no JSON yet; again: what is left
#   bash eval/benchmarks/device.sh --list                     prints the steps: name, seconds at most, command
#   REHEARSE=1 SIZES=dummy bash eval/benchmarks/device.sh     on a CPU, with small models and few repetitions
#   python -m eval.benchmarks.device --fill=docs/speed.md     fills the page's table from the JSON
#
# Needs, before: `pip install -e '.[gpu,serving]'` (or `[tpu,serving]`), from the repository's root. Where there is no
# internet: `pip download` the packages on a machine with the same Python and `pip install --no-index --find-links=DIR`.
#
# DEVICE_SECONDS  of all steps together, 570
# RESULTS         folder of the JSON, results/bench/device; of a rehearsal runs/device
# SCRATCH         folder of what the steps print and of compiled programs, which a second run finds again
# SIZES           pi0 (3.2 B parameters), midsize or dummy
# PYTHON          interpreter, python
# REHEARSE        how many times its seconds a step may take of a rehearsal, 1 or more
# OPENPI          a checkout of openpi with its environment in .venv, which is then timed too
set -u
cd "$(dirname "$0")/../.." || exit 2

rehearse=${REHEARSE:-}
sizes=${SIZES:-pi0}
python=${PYTHON:-python}
results=${RESULTS:-$([ -n "$rehearse" ] && echo runs/device || echo results/bench/device)}
scratch=${SCRATCH:-runs/device.scratch}
budget=${DEVICE_SECONDS:-570}
case $sizes in
  pi0) pi05=pi05 ;;
  midsize | dummy) pi05=pi05_$sizes ;;
  *) echo "device.sh: SIZES=$sizes is unknown; allowed: pi0, midsize, dummy" >&2; exit 2 ;;
esac

if [ -n "$rehearse" ]; then
  few="--repeats=2" batch=2 cycles=20 records=200 minutes=0.05 counts=100 robots=2
  cases="--case=tests/golden/pi05_lora_scaled"
else
  few="--repeats=50" batch=32 cycles=1000 records=10000 minutes=0.5 counts=1000,10000,100000 robots=8,64
  cases="--case=tests/golden/pi0 --case=tests/golden/pi05_lora_scaled --case=tests/golden/train_pi0_lora"
fi

# Calls $1 with each step: name, seconds at most, module, arguments but --out.
steps() {
  $1 latency 150 eval.bench latency --size="$sizes" --cameras=3,2 --no-stages $few
  $1 loop 150 eval.bench loop --size="$sizes" --cameras=3 --rates=40,50 --cycles=$cycles --records=$records $few
  $1 train 130 eval.bench train --size="$sizes" --batch=$batch --variants=lora_frozen_images_remat --repeats=5
  $1 cudnn 120 eval.bench latency --size="$sizes" --cameras=3,2 --kernel=cudnn --no-stages $few
  $1 pi05 110 eval.bench latency --size=$pi05 --cameras=3 --no-stages $few
  [ -z "${OPENPI:-}" ] || $1 openpi 150 eval.bench latency --size="$sizes" --cameras=3 --openpi="$OPENPI" \
    --openpi-python="$OPENPI/.venv/bin/python" --no-stages $few
  $1 memory 70 eval.bench memory --size="$sizes" --cameras=3 --records=$records
  $1 int8 120 eval.bench latency --size="$sizes" --cameras=3 --weights=int8 --no-stages $few
  $1 stages 100 eval.bench latency --size="$sizes" --cameras=3 $few
  $1 parity 80 eval.parity $cases
  $1 one_call 120 eval.bench loop --size="$sizes" --cameras=3 --rates=50 --cycles=$cycles --records=$records \
    --feeding=callback $few
  $1 peak 30 eval.bench peak $few
  $1 steps 100 eval.bench latency --size="$sizes" --cameras=3 --steps=5,2,1 --no-stages $few
  $1 ablate 110 eval.bench ablate --size="$sizes" --cameras=2 $few
  $1 batches 110 eval.bench latency --size="$sizes" --cameras=3 --batches=$robots --no-stages --repeats=5
  $1 train_whole 130 eval.bench train --size="$sizes" --batch=$batch --variants=lora_frozen_images --repeats=5
  $1 precision 60 eval.parity $cases --precision=default
  $1 clients 60 eval.bench clients --robots=8 --windows=0,2 --minutes=$minutes
  $1 retrieval 60 eval.bench retrieval --key-dims=512 --record-counts=$counts
}

show() {
  local name=$1 seconds=$2
  shift 2
  echo "$name $seconds $python -m $* --out=$results/$name.json"
}

declare -i measured=0 missing=0
run() {
  local name=$1 seconds=$2 out=$results/$1.json left=$((budget - SECONDS)) began=$SECONDS said
  seconds=$((seconds * ${rehearse:-1}))
  shift 2
  if [ -e "$out" ]; then
    said="there already"
  elif [ $left -lt 10 ]; then
    said="left out: no time"
  else
    timeout --kill-after=5 $((left < seconds ? left : seconds)) "$python" -m "$@" --out="$out" >"$scratch/$name.log" 2>&1
    case $? in
      0) said="$((SECONDS - began)) s" ;;
      124 | 137) said="stopped after $((SECONDS - began)) s" ;;
      *) said="$((SECONDS - began)) s: $(tail -n 1 "$scratch/$name.log")" ;;
    esac
  fi
  [ -e "$out" ] && measured+=1 || missing+=1
  printf '%-12s %s\n' "$name" "$said"
}

case ${1:-} in
  --list) steps show; exit ;;
  "") ;;
  *) echo "device.sh: '$1' is unknown; allowed: --list, or nothing" >&2; exit 2 ;;
esac
if [ -z "$rehearse" ] && ! "$python" -c 'import jax, sys; sys.exit(jax.default_backend() == "cpu")' 2>/dev/null; then
  echo "device.sh: jax sees no accelerator with PYTHON=$python: install '.[gpu,serving]', or rehearse with REHEARSE=1" >&2
  exit 2
fi
mkdir -p "$results" "$scratch"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/$scratch/programs}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # servers and their clients share the device
steps run
"$python" -m eval.benchmarks.device --results="$results"
echo "$measured steps measured, $missing missing$([ $missing -eq 0 ] || echo ': run it again for these')"
[ $missing -eq 0 ]
